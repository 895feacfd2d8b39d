"""Main modules for child processes of functions: `multiprocessing` and `loky` have each child import its parent's.

Workers write these modules when a function starts such a child (`agent.snapshots`).
"""

DIRECTORY = "/tmp/.atoll-mains"

__path__ = [DIRECTORY]
