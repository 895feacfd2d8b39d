"""The server as a process: its lock, signals, listener, TLS, and its word to systemd."""
