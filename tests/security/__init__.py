"""Attacks on the promises of SECURITY.md, by kind."""
