"""Queues of a user: requests to endpoints, and spawned calls of deployed functions."""
