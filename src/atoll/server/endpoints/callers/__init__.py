"""Callers of endpoints: their credentials, tokens of browsers, pages of other sites, and rates."""
