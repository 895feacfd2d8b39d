"""The project's modules that travel with a call."""
