"""The name of 2023 by which the program can be called, `fal-serverless`."""

from __future__ import annotations

import sys
from pathlib import Path


def is_older_name() -> bool:
    """Return whether this process was called by that name."""
    return Path(sys.argv[0]).name.startswith("fal")
