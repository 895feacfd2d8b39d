"""Plain data: the format of `results="data"`, decoded without running code."""
