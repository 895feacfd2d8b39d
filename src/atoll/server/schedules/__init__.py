"""Schedules: functions that a server calls by the clock, with the history of their activations."""
