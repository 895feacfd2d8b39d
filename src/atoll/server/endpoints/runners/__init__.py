"""Runners of served functions: pools of them, one for each revision."""
