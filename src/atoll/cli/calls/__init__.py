"""`atoll calls`, `status`, `cancel`, `logs`, `exec`, `stack` and `top`: calls that wait, that run, and that are over."""
