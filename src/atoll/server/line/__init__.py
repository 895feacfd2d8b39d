"""Lines: WebSockets of clients, each relayed to one connection of the node; see `session`."""
