"""Hosts, the places where calls go, behind one contract (`contract.Host`). Importable on every platform."""
