"""The accounts of nodes: machines that have joined a server, their credentials and states, and the tokens to join."""
