"""Webhooks: addresses that are told of answers, with signatures, until they have been told."""
