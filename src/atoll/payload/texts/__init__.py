"""Texts of the caller's files, for the code that travels: both ends of the format side by side."""
