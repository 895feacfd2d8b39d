"""Requests of a storage client and answers of a storage peer."""
