"""The storage client: every request on a volume as a method; every platform."""
