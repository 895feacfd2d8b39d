"""Accounts: users, their keys, sessions of the page, authentication, and the routes and commands about them."""
