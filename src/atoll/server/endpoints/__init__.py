"""Endpoints: functions that a server serves over HTTP, by revisions, aliases and runners."""
