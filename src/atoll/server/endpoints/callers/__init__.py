"""Who may call an endpoint: credentials, tokens of browsers, pages of other sites, and rates."""
