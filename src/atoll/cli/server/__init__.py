"""`atoll server`: the server's process in the foreground."""
