"""Connections of a server: its nodes' links, clients' lines that have no node yet, and the splice of both."""
