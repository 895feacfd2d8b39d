"""Builds of environments: recipes, builders, and their errors."""
