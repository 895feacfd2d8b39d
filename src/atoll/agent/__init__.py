"""The processes inside a sandbox: the agent, which forks workers, and the worker, which serves calls.

Standard library and cloudpickle only, and quick to import: its start is part of every cold call.
"""
