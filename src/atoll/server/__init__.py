"""The server: users over HTTP, in front of a node that runs their functions.

Theory of operation. The node is the daemon of the server's state directory: it owns environments, volumes and sandboxes,
and outlives the server's restarts. The server is its owner's client: it authenticates people, and asks the node in the
name of a user (`node`). Bytes of calls pass through it as they are; it neither pickles nor unpickles.
"""
