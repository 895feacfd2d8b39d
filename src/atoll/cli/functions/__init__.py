"""`atoll function` and `atoll alias`: functions that a server serves."""
