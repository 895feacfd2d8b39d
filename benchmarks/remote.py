"""What a call costs on a server, beside a bare Starlette endpoint that echoes on the same uvicorn, and beside local calls.

    make bench SUITE=remote
    make bench SUITE=remote BENCH="--rounds 3"

One run, one table; what is compared takes turns in each round. The first round is not counted. Server, endpoint and
clients share this machine. nginx speaks TLS before both, where it is here (`make tools`).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from peers import stop_daemon
from servers import Echo, bare_echo, memory_of, nginx
from table import Comparison, Figure, Row, Samples, command_line, finish, say

from atoll import Host, LocalHost, isolated, settings, sync_dir
from atoll.cli.server.demo import serving

WARM_CALLS = 300
BODY = b"x" * 64
MIB = 1 << 20


def add(a: int, b: int) -> int:
    return a + b


def same(data: bytes) -> bytes:
    return data


def turns(rounds: int, what: str) -> Iterator[bool]:
    """Give, for each round, whether it counts."""
    for number in range(rounds + 1):
        say(f"{what}: round {number} of {rounds}" if number else f"{what}: warm-up")
        yield number > 0


def timed(call: Callable[[], Any], samples: Samples, times: int, counts: bool) -> None:
    """Time a call several times."""
    for _ in range(20 if times > 20 else 1):
        call()
    for _ in range(times if counts else 0):
        with samples.time():
            call()


def measure_warm(remote: Host, local: LocalHost, bare: str, rounds: int, times: int) -> list[Row]:
    """Warm calls over loopback, whole: pickling, relay, a worker in its sandbox."""
    there, here = isolated(host=remote, keep_alive=600)(add), isolated(host=local, keep_alive=600)(add)
    calls = Samples("warm remote call")
    at_home, by_http, by_httpx = Samples("warm local call"), Samples("echo, http.client"), Samples("echo, httpx")
    echo = Echo(bare)
    with httpx.Client() as client:
        for counts in turns(rounds, "warm calls"):
            timed(lambda: there(1, 2), calls, times, counts)
            timed(lambda: here(1, 2), at_home, times, counts)
            timed(lambda: echo.call(BODY), by_http, times, counts)
            timed(lambda: client.post(f"{bare}/echo", content=BODY).content, by_httpx, times, counts)
    echo.close()
    return [
        Comparison(calls, by_httpx, aim=0.5),
        Comparison(calls, by_http, aim=1.0),
        Comparison(calls, at_home),
    ]


def measure_proxy(variables: dict[str, str], front: tuple[str, str] | None, rounds: int, times: int) -> list[Row]:
    """Warm calls through nginx with TLS."""
    if front is None:
        return []
    address, authority = front
    host = Host(address, key_id=variables["ATOLL_KEY_ID"], key_secret=variables["ATOLL_KEY_SECRET"], ca_file=authority)
    there = isolated(host=host, keep_alive=600)(add)
    calls, by_http = Samples("warm remote call, nginx, TLS"), Samples("echo, the same nginx")
    echo = Echo(address, authority)
    for counts in turns(rounds, "through nginx"):
        timed(lambda: there(1, 2), calls, times, counts)
        timed(lambda: echo.call(BODY), by_http, times, counts)
    echo.close()
    return [Comparison(calls, by_http, aim=0.7)]


def _work(kind: str, variables: dict[str, str], bare: str, begin: Any, ended: Any, done: Any, threads: int) -> None:
    """Make calls in some threads of a process, from the start until the end; put their number."""
    counts = list[int]()

    def run() -> None:
        if kind == "atoll":
            host = Host(
                variables["ATOLL_HOST"],
                key_id=variables["ATOLL_KEY_ID"],
                key_secret=variables["ATOLL_KEY_SECRET"],
            )
            function = isolated(host=host, keep_alive=600, cpu=0.1)(add)
            call: Callable[[], Any] = lambda: function(1, 2)  # noqa: E731
        else:
            echo = Echo(bare)
            call = lambda: echo.call(BODY)  # noqa: E731
        call()
        begin.wait()
        count = 0
        while not ended.is_set():
            call()
            count += 1
        counts.append(count)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    done.put(sum(counts))


def measure_rate(variables: dict[str, str], bare: str, clients: list[int], seconds: float) -> list[Row]:
    """Calls a second of several clients at once, whole calls beside echoes."""
    context = multiprocessing.get_context("spawn")
    rows: list[Row] = []
    for number in clients:
        rates = dict[str, float]()
        processes = min(number, 4)
        for kind in ("echo", "atoll"):
            say(f"{number} clients: {kind}")
            begin, ended, done = context.Barrier(number + 1), context.Event(), context.Queue()
            threads = number // processes
            arguments = (kind, variables, bare, begin, ended, done, threads)
            started = [context.Process(target=_work, args=arguments) for _ in range(processes)]
            for one in started:
                one.start()
            begin.wait(120)
            time.sleep(seconds)
            ended.set()
            rates[kind] = sum(done.get(timeout=120) for _ in started) / seconds
            for one in started:
                one.join()
        ours, peer = Samples(f"remote calls, {number} clients"), Samples("echo, http.client")
        ours.seconds, peer.seconds = [1 / rates["atoll"]], [1 / rates["echo"]]
        rows.append(Comparison(ours, peer, aim={1: 1.0, 16: 1.7, 256: 1.3}.get(number), amount=1.0, unit="calls/s"))
    return rows


def measure_map(remote: Host, local: LocalHost, rounds: int, items: int) -> list[Row]:
    """Many tiny calls of one function."""
    ours, peer = Samples(f"map of {items:,}, remote"), Samples("the same, local")
    there, here = isolated(host=remote, keep_alive=600)(abs), isolated(host=local, keep_alive=600)(abs)
    for counts in turns(rounds, "map"):
        for function, samples in ((there, ours), (here, peer)):
            timed(lambda one=function: sum(1 for _ in one.map(range(items))), samples, 1, counts)  # type: ignore[misc]
    return [Comparison(ours, peer, aim=1.3)]


def measure_large(remote: Host, local: LocalHost, bare: str, server: int, rounds: int, size: int) -> list[Row]:
    """A large argument; large bytes up and down; the server's memory meanwhile."""
    data = os.urandom(size)
    ours, peer = Samples(f"{size >> 20} MiB as an argument, remote"), Samples("the same, local")
    both, bare_both = Samples(f"{size >> 20} MiB up and down"), Samples("bare POST, http.client")
    there = isolated(host=remote, keep_alive=600)(len)
    here = isolated(host=local, keep_alive=600)(len)
    back = isolated(host=remote, keep_alive=600)(same)
    echo, before = Echo(bare), 0.0
    for counts in turns(rounds, "large values"):
        timed(lambda: there(data), ours, 1, counts)
        timed(lambda: here(data), peer, 1, counts)
        timed(lambda: back(data), both, 1, counts)
        timed(lambda: echo.call(data), bare_both, 1, counts)
        before = before or memory_of(server)
    echo.close()
    grown = memory_of(server) - before
    amount = 2 * size / MIB
    return [
        Comparison(ours, peer, aim=2.5),
        Comparison(both, bare_both, aim=0.8, amount=amount, unit="MiB/s"),
        Figure("growth of the server's memory meanwhile", grown, "MiB", aim=16.0),
    ]


def measure_idle(address: str, server: int, most: int) -> list[Row]:
    """Connections that have made one request and stay."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    number = min(most, hard - 200)
    parts = urlsplit(address)
    say(f"{number:,} idle connections")
    before = memory_of(server)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        opened = list[socket.socket]()
        for place in range(number):
            source = (f"127.0.0.{2 + place // 2000}", 0)  # the server bounds the connections of one address
            target = (parts.hostname or "", parts.port or 0)
            connection = stack.enter_context(socket.create_connection(target, source_address=source))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n")
            opened.append(connection)
        answered = sum(b"200 OK" in connection.recv(4096) for connection in opened)
        grown = (memory_of(server) - before) * 1024 / number
        with httpx.Client() as client:
            client.get(f"{address}/healthz")
            samples = Samples(f"/healthz beside {answered:,} idle connections")
            for _ in range(50):
                with samples.time():
                    client.get(f"{address}/healthz")
    return [Figure(f"memory for each of {answered:,} idle connections", grown, "KiB", aim=8.0), Comparison(samples)]


def measure_sync(place: Path, remote: Host, local: LocalHost, rounds: int, files: int) -> list[Row]:
    """A directory of small files: first, unchanged, one per cent changed; beside a sync to the local volume."""
    chance = random.Random(1)
    tree = place / "tree"
    for number in range(files):
        path = tree / f"{number % 100:02}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(100, 8000)))
    names = ("first", "unchanged", "1 per cent changed")
    ours = [Samples(f"sync of {files:,} small files, {name}") for name in names]
    peer = [Samples("the same, local volume") for _ in names]
    for counts in turns(rounds, "sync"):
        target = f"tree-{time.monotonic_ns()}"
        for number in range(3):
            if number == 2:
                for changed in range(0, files, 100):
                    (tree / f"{changed % 100:02}" / f"{changed}.txt").write_bytes(chance.randbytes(500))
            for host, samples in ((remote, ours[number]), (local, peer[number])):
                if counts:
                    with samples.time():
                        sync_dir(tree, target, host=host)
                else:
                    sync_dir(tree, target, host=host)
    return [Comparison(mine, other) for mine, other in zip(ours, peer, strict=True)]


def measure_download(variables: dict[str, str], bare: str, file: Path, rounds: int) -> list[Row]:
    """A file of the volume by plain HTTP, beside the same file from the bare endpoint."""
    size = file.stat().st_size
    ours, peer = Samples(f"download of {size >> 20} MiB, /v1/files"), Samples("bare FileResponse")
    address = variables["ATOLL_HOST"]
    headers = {"Authorization": f"Key {variables['ATOLL_KEY_ID']}:{variables['ATOLL_KEY_SECRET']}"}
    echo = Echo(bare)
    with httpx.Client(headers=headers, timeout=300) as client:
        with open(file, "rb") as contents:
            client.put(f"{address}/v1/files/bench", content=contents).raise_for_status()
        parts = urlsplit(address)

        def download() -> None:
            import http.client

            connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
            connection.request("GET", "/v1/files/bench", headers=headers)
            answer = connection.getresponse()
            found = 0
            while data := answer.read(1 << 20):
                found += len(data)
            connection.close()
            assert found == size

        for counts in turns(rounds, "download"):
            timed(download, ours, 1, counts)
            timed(echo.read_file, peer, 1, counts)
    echo.close()
    return [Comparison(ours, peer, aim=0.7, amount=size / MIB, unit="MiB/s")]


def main() -> int:
    options = command_line("Measure calls on a server.", 7).parse_args()
    tiny = options.tiny
    rounds = 1 if tiny else max(1, options.rounds)
    few = max(1, rounds // 2)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        place = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="atoll-bench-", ignore_cleanup_errors=True))
        )
        os.environ["ATOLL_HOME"] = str(place / "local")
        stack.callback(stop_daemon)
        file = place / "file"
        file.write_bytes(os.urandom((4 if tiny else 256) * MIB))
        there = settings.load(place / "server")
        there.home.mkdir(mode=0o700)
        variables = stack.enter_context(serving(there))
        address = variables["ATOLL_HOST"]
        server = int(json.loads((there.run_directory / "server.json").read_text())["pid"])
        bare = stack.enter_context(bare_echo(file))
        front = stack.enter_context(nginx(place, bare, address))
        remote = Host(address, key_id=variables["ATOLL_KEY_ID"], key_secret=variables["ATOLL_KEY_SECRET"])
        local = LocalHost(place / "local")
        rows += measure_warm(remote, local, bare, rounds, 5 if tiny else WARM_CALLS)
        rows += measure_proxy(variables, front, rounds, 5 if tiny else WARM_CALLS)
        rows += measure_rate(variables, bare, [1] if tiny else [1, 16], 0.2 if tiny else 5.0)
        rows += measure_map(remote, local, few, 50 if tiny else 10_000)
        if not tiny:
            rows += measure_large(remote, local, bare, server, rounds, 64 * MIB)
        rows += measure_idle(address, server, 50 if tiny else 10_000)
        rows += measure_sync(place, remote, local, few, 50 if tiny else 10_000)
        rows += measure_download(variables, bare, file, few)
    notes = [
        f"{rounds} rounds after one that is not counted (syncs, maps and downloads {few}).",
        "Echo: a POST with 64 bytes to Starlette on uvicorn with httptools and uvloop, over one connection.",
        "A remote call is whole: pickled, relayed, made by a worker in its sandbox, and back; all on this machine.",
        "Clients at once are processes with threads, each with a worker of its own (`cpu=0.1`).",
    ]
    if front is None:
        notes.append("nginx is not here: its row is missing.")
    notes.append("A ratio is Atoll's median by the peer's; of rates it is the other way about.")
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
