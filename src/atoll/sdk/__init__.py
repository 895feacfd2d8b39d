"""The names that users import: decorator, futures, upload of directories. Standard library and cloudpickle only."""
