"""What a call costs on a server, beside a bare Starlette endpoint that echoes on the same uvicorn, and beside local calls.

    make bench SUITE=remote
    make bench SUITE=remote BENCH="--rounds 8 --only calls proxy"

One run, one table; what is compared takes turns in each round. The first round is not counted. Server, endpoint and
clients share this machine. nginx speaks TLS before both, where it is here (`make tools`).
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from peers import stop_daemon
from remote_bytes import MIB, measure_download, measure_large, measure_sync, once, turns
from remote_connections import measure_connections, raise_descriptors
from remote_rates import BODY, add, measure_rate
from servers import Echo, Front, bare_echo, nginx, use_unpacked_pasta
from table import Comparison, Row, Samples, command_line, finish

from atoll import Host, LocalHost, isolated, settings
from atoll.cli.server.demo import serving

BLOCK = 50
PARTS = ["calls", "proxy", "rates", "map", "large", "connections", "sync", "download"]


def timed(call: Callable[[], Any], samples: Samples, times: int, *, counts: bool) -> None:
    """Time a call several times, after two that are not counted: the processors turn to it."""
    for _ in range(2):
        call()
    for _ in range(times if counts else 20):
        with samples.time():
            call()
    if not counts:
        samples.clear()


def measure_warm(remote: Host, local: LocalHost, bare: str, rounds: int) -> list[Row]:
    """Warm calls over loopback, whole: pickling, relay, a worker in its sandbox."""
    there, here = isolated(host=remote, keep_alive=600)(add), isolated(host=local, keep_alive=600)(add)
    calls = Samples("warm remote call")
    at_home, by_http, by_httpx = Samples("warm local call"), Samples("echo, http.client"), Samples("echo, httpx")
    echo = Echo(bare)
    with httpx.Client() as client:
        for counts in turns(rounds, "warm calls"):
            timed(lambda: there(1, 2), calls, BLOCK, counts=counts)
            timed(lambda: here(1, 2), at_home, BLOCK, counts=counts)
            timed(lambda: echo.call(BODY), by_http, BLOCK, counts=counts)
            timed(lambda: client.post(f"{bare}/echo", content=BODY).content, by_httpx, BLOCK, counts=counts)
    echo.close()
    return [
        Comparison(calls, by_httpx, aim=0.5),
        Comparison(calls, by_http, aim=1.0),
        Comparison(calls, at_home),
    ]


def measure_proxy(variables: dict[str, str], front: Front | None, rounds: int) -> list[Row]:
    """Warm calls through nginx with TLS."""
    if front is None:
        return []
    there = isolated(host=host_of(variables, front), keep_alive=600)(add)
    calls = Samples("warm remote call, nginx, TLS")
    by_http, by_httpx = Samples("echo, http.client, the same nginx"), Samples("echo, httpx, the same nginx")
    echo = Echo(front.address, front.authority)
    with httpx.Client(verify=ssl.create_default_context(cafile=front.authority)) as client:
        for counts in turns(rounds, "through nginx"):
            timed(lambda: there(1, 2), calls, BLOCK, counts=counts)
            timed(lambda: echo.call(BODY), by_http, BLOCK, counts=counts)
            timed(lambda: client.post(f"{front.address}/echo", content=BODY).content, by_httpx, BLOCK, counts=counts)
    echo.close()
    return [Comparison(calls, peer, aim=0.7) for peer in (by_httpx, by_http)]


def measure_map(remote: Host, local: LocalHost, rounds: int, items: int) -> list[Row]:
    """Many tiny calls of one function."""
    ours, peer = Samples(f"map of {items:,}, remote"), Samples("the same, local")
    there, here = isolated(host=remote, keep_alive=600)(abs), isolated(host=local, keep_alive=600)(abs)
    for counts in turns(rounds, "map"):
        for function, samples in ((there, ours), (here, peer)):
            once(samples, lambda one=function: sum(1 for _ in one.map(range(items))), counts=counts)  # type: ignore[misc]
    return [Comparison(ours, peer, aim=1.3)]


def host_of(variables: dict[str, str], front: Front | None = None) -> Host:
    """Return the server, or the same through nginx."""
    return Host(
        front.address if front is not None else variables["ATOLL_HOST"],
        key_id=variables["ATOLL_KEY_ID"],
        key_secret=variables["ATOLL_KEY_SECRET"],
        ca_file=front.authority if front is not None else "",
    )


def main() -> int:
    parser = command_line("Measure calls and files on a server.", 20)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (default: all)")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16, 256], help="at once, for the rates")
    options = parser.parse_args()
    tiny, only = options.tiny, set(options.only)
    rounds = 1 if tiny else max(1, options.rounds)
    few = max(1, rounds // 4)
    rows: list[Row] = []
    raise_descriptors()
    use_unpacked_pasta()
    with contextlib.ExitStack() as stack:
        place = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="atoll-bench-", ignore_cleanup_errors=True))
        )
        os.environ["ATOLL_HOME"] = str(place / "local")
        stack.callback(stop_daemon)
        file = place / "file"
        _write_noise(file, 4 if tiny else 1024 if "download" in only else 64)
        there = settings.load(place / "server")
        there.home.mkdir(mode=0o700)
        variables = stack.enter_context(serving(there))
        address = variables["ATOLL_HOST"]
        bare, echo_process = stack.enter_context(bare_echo(file))
        front = stack.enter_context(nginx(place, bare, address))
        remote, local = host_of(variables), LocalHost(place / "local")
        isolated(host=remote)(abs)(-1)  # starts the node
        server, node = (
            int(json.loads((there.run_directory / name).read_text())["pid"]) for name in ("server.json", "daemon.json")
        )
        parts: dict[str, Callable[[], list[Row]]] = {
            "calls": lambda: measure_warm(remote, local, bare, rounds),
            "proxy": lambda: measure_proxy(variables, front, rounds),
            "rates": lambda: _rates(
                place, (bare, echo_process), [1] if tiny else options.clients, few, 0.2 if tiny else 1.0
            ),
            "map": lambda: measure_map(remote, local, few, 50 if tiny else 10_000),
            "large": lambda: measure_large(remote, local, bare, server, few, (1 if tiny else 64) * MIB),
            "connections": lambda: measure_connections(
                address, there, (server, node), 10 if tiny else 1000, 50 if tiny else 10_000, heads=not tiny
            ),
            "sync": lambda: measure_sync(place, host_of(variables, front), local, min(few, 2), 50 if tiny else 10_000),
            "download": lambda: measure_download(variables, bare, front, file, place, min(few, 2)),
        }
        for name, measure in parts.items():
            if name in only:
                rows += measure()
        notes = [
            f"{rounds} rounds of {BLOCK} calls each after one that is not counted; what is compared takes turns in each.",
            f"Rates, maps and large values {few} rounds, directories and files {min(few, 2)}.",
            "Echo: a POST with 64 bytes to Starlette on uvicorn with httptools and uvloop, over one connection.",
            "A remote call is whole: pickled, relayed, made by a worker in its sandbox, and back; all on this machine.",
            "Clients at once are threads of at most 4 processes, each with a worker of its own, all on these processors;",
            "relayed or echoed by a processor: calls by the time that processors worked for the server. Memory is resident.",
            "A sync to the server is durable, through nginx with TLS where it is here; rsync is not durable.",
        ]
        if front is None:
            notes.append("nginx is not here: its rows are missing, and syncs go without TLS.")
        notes.append("A ratio is Atoll's median by the peer's; of rates it is the other way about.")
        return finish(rows, notes, options)


def _rates(place: Path, bare: tuple[str, int], clients: list[int], rounds: int, seconds: float) -> list[Row]:
    """Calls a second, on a server whose node has a slot for each client."""
    options = settings.load(place / "many")
    options.home.mkdir(mode=0o700)
    (options.home / "settings.toml").write_text("[pool]\nslots = 300\nmax_workers = 300\n")
    with serving(options) as variables:
        server = int(json.loads((options.run_directory / "server.json").read_text())["pid"])
        return measure_rate(variables, server, bare, clients, rounds, seconds)


def _write_noise(file: Path, size: int) -> None:
    """Write so many MiB that do not compress."""
    block = os.urandom(4 * MIB)
    with open(file, "wb") as output:
        output.writelines(number.to_bytes(8, "big") + block[8:] for number in range(0, size, 4))


if __name__ == "__main__":
    sys.exit(main())
