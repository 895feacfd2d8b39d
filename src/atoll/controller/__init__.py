"""gRPC for the published clients of the original system: a process of its own beside the server.

Theory of operation. The server starts this process and splices gRPC connections to its Unix socket. The process is an
ordinary client of the server by another Unix socket, with the key that each gRPC call brings: it has no rights of its
own. A function comes as a pickle that only a sandbox opens (`atoll.web.hosted`); results come back as plain data with
the pickle in them. So neither the server nor this process ever unpickles.
"""
