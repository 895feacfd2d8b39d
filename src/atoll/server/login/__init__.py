"""Logins by an issuer of identities (OpenID Connect): the device flow, brokered by the server, ends in a key.

The person's program never talks to the issuer: the server begins the flow, asks how it stands, checks the token that
comes back, and makes a key for the user that the token's subject is.
"""
