"""Fleets: those who start and end the processes of machines, behind `cluster.contract.Fleet`."""
