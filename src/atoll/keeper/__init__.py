"""The keeper: the process that makes detached calls in place of their programs. The daemon starts it and ends it."""
