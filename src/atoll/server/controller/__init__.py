"""The server's side of gRPC: a child process that speaks it, and connections that are spliced to the child."""
