"""Requests that are no calls, where a server has several machines: merged, sent to the one that knows, or to all."""
