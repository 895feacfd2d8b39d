"""Outputs of an endpoint's runners, for their owner."""
