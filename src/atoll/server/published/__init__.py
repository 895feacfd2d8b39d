"""Addresses that the published clients of the original system ask beside `/v1`; their errors are `{"detail": TEXT}`."""
