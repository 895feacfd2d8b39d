"""Functions, arguments, results and exceptions as bytes: both ends of each format side by side.

Clients and workers import this package; the daemon's side never does (invariant 1)."""
