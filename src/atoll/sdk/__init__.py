"""What users import: the decorator, futures, the upload of directories. Standard library and cloudpickle only."""
