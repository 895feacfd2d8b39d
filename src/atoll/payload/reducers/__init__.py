"""Reducers of objects that a pickler does not know, and the functions that make these again.

Pickles name the functions whose names begin with `rebuild` and `restore`: they keep names and signatures.
"""
