"""This version's library for sandboxes, made once for the state directories of a run: each daemon would take 2 s of CPU for it."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atoll.node import mounted_files


@functools.cache
def _made() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="atoll-library-", dir="/tmp"))
    old = os.umask(0o022)
    try:
        library = mounted_files.prepare(directory / "agents")
        with ThreadPoolExecutor(1) as thread:  # a browser's test has a loop that runs
            thread.submit(asyncio.run, mounted_files.compile_rest(library)).result()
    finally:
        os.umask(old)
    return directory


def put(home: Path) -> None:
    """Give a fresh state directory the library, as an earlier daemon would have left it; its files are hard links."""
    shutil.copytree(_made() / "agents", home / "agents", copy_function=os.link)
    (home / "agents").chmod(0o700)


def remove() -> None:
    """Remove what this run has made."""
    if _made.cache_info().currsize:
        shutil.rmtree(_made())
        _made.cache_clear()
