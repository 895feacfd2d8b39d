"""`atoll usage`: sums over the records of calls and the disk, as tables, plots in a terminal, and a page."""
