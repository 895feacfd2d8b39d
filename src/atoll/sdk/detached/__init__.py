"""Calls that outlive their program: handles, and batches that can be left and resumed."""
