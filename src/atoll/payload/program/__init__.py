"""The program that a function comes from: its namespaces in a worker, and the names that travel or are asked for."""
