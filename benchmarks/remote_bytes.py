"""Large values, directories and files to and from a server, beside local calls, a bare POST, rsync over ssh, and nginx."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from servers import Echo, Front, find_program, memory_of, sshd
from table import Comparison, Figure, Row, Samples, say

from atoll import Host, LocalHost, isolated, sync_dir

MIB = 1 << 20
STATES = ("first", "unchanged", "1 per cent changed")
SYNC_AIMS = (0.7, 0.3, 0.7)


def turns(rounds: int, what: str) -> Iterator[bool]:
    """Give, for each round, whether it counts."""
    for number in range(rounds + 1):
        say(f"{what}: round {number} of {rounds}" if number else f"{what}: warm-up")
        yield number > 0


def once(samples: Samples, work: Callable[[], Any], *, counts: bool) -> None:
    """Do something once, and time it if it counts."""
    with samples.time():
        work()
    if not counts:
        samples.clear()


def same(data: Any) -> Any:
    import pickle

    return pickle.PickleBuffer(data)


def measure_large(remote: Host, local: LocalHost, bare: str, server: int, rounds: int, size: int) -> list[Row]:
    """A large argument; large bytes up and down; the server's memory meanwhile."""
    data = bytearray(os.urandom(size))
    array: Any = pickle.PickleBuffer(data)  # as an array's memory: beside its pickle
    ours, peer = Samples(f"{size >> 20} MiB array as an argument, remote"), Samples("the same, local")
    both, bare_both = Samples(f"{size >> 20} MiB up and down"), Samples("bare POST, http.client")
    there = isolated(host=remote, keep_alive=600)(len)
    here = isolated(host=local, keep_alive=600)(len)
    back = isolated(host=remote, keep_alive=600)(same)
    body = bytes(data)
    echo, most, before = Echo(bare), 0.0, 0.0
    for counts in turns(rounds, "large values"):
        data[:64] = os.urandom(64)  # another value each time: one that repeats is not sent again
        once(ours, lambda: there(array), counts=counts)
        once(peer, lambda: here(array), counts=counts)
        data[:64] = os.urandom(64)
        once(both, lambda: back(array), counts=counts)
        most = max(most, memory_of(server))
        once(bare_both, lambda: echo.call(body), counts=counts)
        before = before or memory_of(server)
    echo.close()
    return [
        Comparison(ours, peer, aim=2.5),
        Comparison(both, bare_both, aim=0.8, amount=2 * size / MIB, unit="MiB/s"),
        Figure("growth of the server's memory meanwhile", most - before, "MiB", aim=16.0),
    ]


def measure_sync(place: Path, remote: Host, local: LocalHost, rounds: int, files: int) -> list[Row]:
    """A directory of small files, beside rsync over ssh, and a sync to the local volume."""
    chance = random.Random(1)
    tree = place / "tree"
    for number in range(files):
        path = tree / f"{number % 100:02}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(100, 8000)))
    rsync = find_program("rsync")
    ours = [Samples(f"sync of {files:,} small files, TLS, {state}") for state in STATES]
    home = [Samples("the same, local volume") for _ in STATES]
    peer = [Samples("rsync over ssh") for _ in STATES]
    with contextlib.ExitStack() as stack:
        shell = stack.enter_context(sshd(place)) if rsync is not None else None
        for counts in turns(rounds, "sync"):
            target = f"tree-{time.monotonic_ns()}"
            for number in range(len(STATES)):
                if number == 2:
                    for changed in range(0, files, 100):
                        (tree / f"{changed % 100:02}" / f"{changed}.txt").write_bytes(chance.randbytes(500))
                once(ours[number], partial(sync_dir, tree, target, host=remote), counts=counts)
                once(home[number], partial(sync_dir, tree, target, host=local), counts=counts)
                if shell is not None:
                    command = [str(rsync), "-a", "--delete", "-e", " ".join(shell), "--rsync-path", str(rsync)]
                    command += [f"{tree}/", f"127.0.0.1:{place / target}/"]
                    once(peer[number], partial(subprocess.run, command, check=True), counts=counts)
            shutil.rmtree(place / target, ignore_errors=True)
    rows: list[Row] = []
    if shell is not None:
        rows += [Comparison(mine, other, aim=aim) for mine, other, aim in zip(ours, peer, SYNC_AIMS, strict=True)]
    return [*rows, *(Comparison(mine, other) for mine, other in zip(ours, home, strict=True))]


def measure_download(
    variables: dict[str, str], bare: str, front: Front | None, file: Path, place: Path, rounds: int
) -> list[Row]:
    """A file of the volume by curl, beside curl from nginx, without TLS and through nginx with it."""
    size, address = file.stat().st_size, variables["ATOLL_HOST"]
    header = f"Authorization: Key {variables['ATOLL_KEY_ID']}:{variables['ATOLL_KEY_SECRET']}"
    with httpx.Client(timeout=300) as client, open(file, "rb") as contents:
        name, _, value = header.partition(": ")
        client.put(f"{address}/v1/files/bench", content=contents, headers={name: value}).raise_for_status()
    curl = find_program("curl")
    if curl is None:
        return []
    pairs: list[tuple[str, str, str, float | None]] = [
        ("curl from a bare FileResponse", f"{address}/v1/files/bench", f"{bare}/file", None)
    ]
    if front is not None:
        (place / "static" / "bench").unlink(missing_ok=True)
        os.link(file, place / "static" / "bench")
        pairs += [
            ("curl from nginx", f"{address}/v1/files/bench", f"{front.plain}/static/bench", 0.7),
            ("the same from nginx", f"{front.address}/v1/files/bench", f"{front.address}/static/bench", 0.7),
        ]
    command = [curl, "-fsS", "-o", "/dev/null", "-H", header, *(["--cacert", front.authority] if front else [])]
    compared = []
    for beside, mine, other, aim in pairs:
        way = "through nginx, TLS" if mine.startswith("https") else "curl"
        compared.append((Samples(f"download of {size >> 20} MiB, {way}"), mine, Samples(beside), other, aim))
    for counts in turns(rounds, "download"):
        for ours, mine, peer, other, _ in compared:
            for samples, url in ((ours, mine), (peer, other)):
                once(samples, partial(subprocess.run, [*command, url], check=True), counts=counts)
    return [Comparison(ours, peer, aim=aim, amount=size / MIB, unit="MiB/s") for ours, _, peer, _, aim in compared]
