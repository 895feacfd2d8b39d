"""`atoll run` and `atoll shell`: a file of the user's and a function in it."""
