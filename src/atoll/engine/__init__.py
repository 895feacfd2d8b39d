"""The engine, which places sandboxes and workers: a pure schedule, and the pool that performs its actions."""
