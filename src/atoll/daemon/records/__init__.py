"""Records of calls: taking, keeping and reading them."""
