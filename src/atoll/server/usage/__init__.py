"""Accounting: machine time by user, function and day, gathered from the node's records."""
