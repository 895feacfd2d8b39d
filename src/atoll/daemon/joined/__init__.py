"""The daemon of a machine that has joined a server: the fence, its share of the machine, its load, and holds of users."""
