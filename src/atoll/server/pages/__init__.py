"""The page of the server: HTML made here, readable without scripts, at the addresses that are not below `/v1/`.

Theory of operation. Each address has a handler that gets a `Visit`: the request and its user. Data comes from the node
in that user's name, so that the node decides whose calls and environments somebody sees. Texts of functions and users
are shown as text only: templates escape, control characters become visible escapes, and the policy of `guard` lets no
script run but the one file of this package.
"""
