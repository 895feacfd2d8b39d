"""Ray as the owner of the machines: their processes, and the resources that calls take, are held by actors.

Ray is never on the way of a user's bytes. `part` opens the engine for a server; `driver`, `machine`, `holder` and
`guard` are the programs that speak with Ray, each outside of the server's process.
"""
