"""The running downloads of a build: how much they have on the disk, told to those who wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from atoll.environments.build.workshop import Workshop
from atoll.model.build_progress import Reader

T = TypeVar("T")

LOOK_SECONDS = 1.0
MOST_FILES = 100_000
"""Files whose sizes are added up."""


def size_bytes(workshop: Workshop, name: str) -> int:
    """Return the bytes of downloads that have not ended; those of other builds at the same time are included.

    uv unpacks a wheel into `.tmp...` as it comes, and `conda_program` writes an archive into `.new-...`.
    """
    directory = workshop.directory
    caches = (directory / "uv", *directory.glob("fetched/*/uv"), workshop.place(name) / "cache")
    archives = (directory / "conda", *directory.glob("fetched/*/conda"))
    places = [*(one.glob(".tmp*") for one in caches), *(one.glob("archives/.new-*") for one in archives)]
    total = looked = 0
    for place in itertools.chain(*places):
        for parent, _, names in os.walk(place):
            for file in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(parent, file)).st_size
            looked += len(names)
            if looked > MOST_FILES:
                return total
    return total


async def watched(
    work: Coroutine[Any, Any, T], workshop: Workshop, name: str, reader: Reader, publish: Callable[[str], None]
) -> T:
    """Await the build `name`; tell meanwhile how much its running downloads have on the disk."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if reader.progress.step == "downloading":
                with contextlib.suppress(OSError):
                    found = await asyncio.to_thread(size_bytes, workshop, name)
                    if (line := reader.unpacked(found)) is not None:
                        publish(line)

    watching = asyncio.create_task(watch(), name=f"watch {name}")
    try:
        return await work
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
