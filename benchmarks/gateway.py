"""What a request to an endpoint costs, beside the same Starlette app on bare uvicorn behind nginx.

    make bench SUITE=gateway
    make bench SUITE=gateway BENCH="--rounds 8 --clients 16"

One run, one table; what is compared takes turns in each round, and the first round is not counted. All without TLS. The
served function is that app in a sandbox, with as many requests at a time as there are clients; nginx and the clients are
on the same processors.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from peers import stop_daemon
from remote_bytes import turns
from remote_connections import raise_descriptors
from remote_rates import BODY, Clients
from servers import Echo, bare_echo, nginx, use_unpacked_pasta
from table import Comparison, Row, Samples, command_line, finish, say

from atoll import Host, isolated, settings
from atoll.cli.server import machine_packages
from atoll.cli.server.demo import USER, serving

BLOCK = 100


@isolated(requirements=["starlette", "uvicorn", "httptools", "uvloop"], exposed_port=8080, keep_alive=600)
def echo_app() -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def echo(request):  # type: ignore[no-untyped-def]  # the types are of the function's environment
        return Response(await request.body())

    app = Starlette(routes=[Route("/echo", echo, methods=["POST"])])
    uvicorn.run(app, host="0.0.0.0", port=8080, access_log=False, log_level="error", timeout_keep_alive=3600)  # noqa: S104


def measure_time(ours: str, peer: str, bare: str, rounds: int) -> list[Row]:
    """One client over one connection."""
    samples, by_nginx, direct = Samples("request to an endpoint"), Samples("nginx, uvicorn"), Samples("uvicorn alone")
    clients = [(Echo(ours), samples), (Echo(peer), by_nginx), (Echo(bare), direct)]
    for counts in turns(rounds, "one client"):
        for client, into in clients:
            for _ in range(BLOCK if counts else 20):
                with into.time():
                    client.call(BODY)
            if not counts:
                into.clear()
    for client, _ in clients:
        client.close()
    return [Comparison(samples, by_nginx, aim=1.8), Comparison(samples, direct)]


def measure_rates(ours: str, peer: str, number: int, rounds: int, seconds: float) -> list[Row]:
    """Requests a second of several clients at once."""
    say(f"{number} clients")
    with contextlib.ExitStack() as stack:
        kinds = []
        for address, name in ((ours, f"endpoint, {number} clients"), (peer, f"nginx, uvicorn, {number} clients")):
            clients = Clients("echo", number, {}, address)
            stack.callback(clients.close)
            kinds.append((clients, Samples(name)))
        for turn in range(rounds + 1):
            for clients, samples in kinds:
                clients.take_turn(seconds, samples, Samples(""), os.getpid(), counts=turn > 0)
    (_, mine), (_, theirs) = kinds
    return [Comparison(mine, theirs, aim=0.6, amount=1.0, unit="requests/s")]


def main() -> int:
    parser = command_line("Measure requests to endpoints.", 8)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16, 64], help="at once, for the rates")
    options = parser.parse_args()
    rounds = 1 if options.tiny else max(1, options.rounds)
    rows: list[Row] = []
    raise_descriptors()
    use_unpacked_pasta()
    with contextlib.ExitStack() as stack:
        place = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="atoll-bench-", ignore_cleanup_errors=True))
        )
        os.environ["ATOLL_HOME"] = str(place / "local")
        stack.callback(stop_daemon)
        (place / "file").write_bytes(b"x")
        there = settings.load(place / "server")
        there.home.mkdir(mode=0o700)
        packages = machine_packages.read(there.home)
        (there.home / "settings.toml").write_text(f"[environments]\n{packages.options}" if packages.options else "")
        os.environ.update(packages.variables)
        variables = stack.enter_context(serving(settings.load(there.home)))
        address = variables["ATOLL_HOST"]
        bare, _ = stack.enter_context(bare_echo(place / "file"))
        front = stack.enter_context(nginx(place, bare, address))
        host = Host(address, key_id=variables["ATOLL_KEY_ID"], key_secret=variables["ATOLL_KEY_SECRET"])
        most = max(options.clients)
        echo_app.on(host).serve("echo", auth="public", max_concurrency=1, max_multiplexing=most)
        ours = f"{address}/{USER}/echo"
        Echo(ours).call(BODY)  # starts the runner
        peer = front.plain if front is not None else bare
        rows += measure_time(ours, peer, bare, rounds)
        for number in [1] if options.tiny else options.clients:
            rows += measure_rates(ours, peer, number, max(1, rounds // 2), 0.2 if options.tiny else 1.0)
        notes = [
            f"{rounds} rounds of {BLOCK} requests each after one that is not counted; what is compared takes turns.",
            "A request: a POST with 64 bytes to Starlette on uvicorn with httptools and uvloop, one process each.",
            "The endpoint's app is in a sandbox, behind the server's gateway; the other one behind nginx.",
        ]
        if front is None:
            notes.append("nginx is not here: the peer is uvicorn alone.")
        notes.append("A ratio is Atoll's median by the peer's; of rates it is the other way about.")
        return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
