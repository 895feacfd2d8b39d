"""The storage peer: a process in a sandbox that serves one client's requests on a volume."""
