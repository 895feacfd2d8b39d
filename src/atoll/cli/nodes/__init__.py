"""`atoll node`, on a machine that joins a server, and `atoll nodes`, for the operators of that server."""
