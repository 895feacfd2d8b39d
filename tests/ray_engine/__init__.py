"""Tests of the engine `ray` with a real Ray, each cluster in namespaces of its own."""
