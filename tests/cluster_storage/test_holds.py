"""Holds of a user's sandboxes on another machine, while a sync switches a tree of the volume that both share."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from atoll import isolated, settings
from atoll.host.local import LocalHost
from atoll.sdk.data.sync import sync_dir
from atoll.server.machines.holds import Holds, relay
from atoll.server.node import Node

from ..leaks import release_idle
from ..waiting import until
from .shared_disk import Machine

UNHELD = "a function could not be held for the switch"


def add_files(directory: str, stop: str) -> int:
    """Add files to a directory, each by its path, until told to stop; return how many."""
    import os
    import time

    count = 0
    while not os.path.exists(stop):
        with open(f"{directory}/{count}", "w") as file:
            file.write(str(count))
        count += 1
        time.sleep(0.02)  # each sync looks at all of them
    return count


@contextlib.contextmanager
def server(machines: tuple[Machine, Machine]) -> Iterator[Holds]:
    """Run the server's part for two machines, in a thread."""
    nodes = {name: Node(settings.load(one.path)) for name, one in zip(("one", "two"), machines, strict=True)}
    holds = Holds(lambda: nodes, tuple)
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        tasks = [asyncio.create_task(relay(node, partial(holds.need, name))) for name, node in nodes.items()]
        while not over.is_set():
            await asyncio.sleep(0.05)
            ready.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(60)
        yield holds
    finally:
        over.set()
        thread.join()


def test_functions_on_other_machines_are_held_for_a_switch(
    machines: tuple[Machine, Machine], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """None of the files is lost that one of them adds meanwhile; without a server the sync says that it was not held."""
    one, other = (LocalHost(machine.path) for machine in machines)
    source = tmp_path / "tree"
    source.mkdir()
    stop = isolated(host=one)(Path.touch)

    def sync(number: int) -> str:
        for name in ("one", f"new-{number}", f"and-{number}"):  # several names, so that the whole tree is switched
            (source / name).write_text(str(number))
        sync_dir(source, "/data/tree", host=one, exclude=["kept"])
        printed = capfd.readouterr().err
        if UNHELD in printed:  # what was being written then may be lost
            doubtful.update(range(max(isolated(host=one)(_numbers)("/data/tree/kept"), default=0) + 2))
        return printed

    doubtful = set[int]()
    sync(0)
    isolated(host=one)(Path.mkdir)(Path("/data/tree/kept"))
    call = isolated(host=other)(add_files).submit("/data/tree/kept", "/data/stop")
    try:
        until(lambda: isolated(host=one)(Path.exists)(Path("/data/tree/kept/1")))
        assert UNHELD in sync(1)
        with server(machines):
            numbers = itertools.count(2)
            until(lambda: UNHELD not in sync(next(numbers)))  # as soon as its streams are open
    finally:
        stop(Path("/data/stop"))
        count = call.result(60)
        there = isolated(host=one)(_numbers)("/data/tree/kept")
        release_idle()
    assert count > max(doubtful)
    assert set(range(count)) - there <= doubtful, "nothing is lost at a switch for which it was held"


def _numbers(directory: str) -> set[int]:
    import os

    return set(map(int, os.listdir(directory)))
