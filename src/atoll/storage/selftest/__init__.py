"""The self-test of a volume's file system, for `atoll doctor --data`."""
