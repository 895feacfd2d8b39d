"""The sandbox: a policy as a value, and bubblewrap that enforces it."""
