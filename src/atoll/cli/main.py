"""`atoll`, and `fal-serverless`: the same program.

All that takes time to import is imported where Ctrl-C ends it quietly, so nothing but `sys` is imported here.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments (default: the process's) name, and exit with its status."""
    try:
        from atoll.cli.commands import run

        status = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
