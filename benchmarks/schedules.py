"""A hundred schedules that are due at one moment, again and again: how late they are.

    make bench SUITE=schedules

Measured from the moment of the expression: until the clock has fired and makes the activations, all in one transaction;
and until the function runs, on the cores of this machine. Each run is a detached call of its own.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the server is that of the tests

from table import Comparison, Row, Samples, command_line, finish, say
from tests.server.process import Server, running

from atoll import Host, isolated
from atoll.sdk.detached.spawning import spool_of

EVERY_SECONDS = 10
PATIENCE_SECONDS = 120.0


def nothing() -> None:
    """Do nothing."""


def schedule(host: Any, count: int) -> list[str]:
    """Register a function so often, each with a schedule of its own; return their ids."""
    function: Any = isolated(host=host, network="none", machine_type="XS")(nothing)
    rule = {"cron": f"*/{EVERY_SECONDS} * * * * *", "timezone": "UTC", "overlap": "allow", "missed": "skip"}
    body = b"".join(
        [json.dumps({"function": "nothing", "rule": rule}).encode(), b"\n", *map(bytes, spool_of(function))]
    )
    return [str(host.server.put("/v1/schedules", body, len(body), "POST")["id"]) for _ in range(count)]


@contextlib.contextmanager
def served() -> Iterator[tuple[Server, Any]]:
    """Run a server; yield it, with its operator's host."""
    with running() as server:
        host = Host(server.url, key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))
        yield server, host


def activations(server: Server, moments: int) -> list[tuple[float, float, float]]:
    """Wait for the ends of all that were due at so many moments; return when they were due, made and started."""
    with contextlib.closing(sqlite3.connect(f"file:{server.home.path}/server/server.db?mode=ro", uri=True)) as database:
        until = time.monotonic() + PATIENCE_SECONDS + moments * EVERY_SECONDS
        while time.monotonic() < until:
            found = database.execute(
                "SELECT due, made, started, ended FROM activations WHERE due IN "
                "(SELECT DISTINCT due FROM activations ORDER BY due LIMIT ?)",
                (moments,),
            )
            rows = found.fetchall()
            if len({row[0] for row in rows}) == moments and all(row[3] for row in rows):
                return [row[:3] for row in rows]
            time.sleep(0.5)
    raise TimeoutError("the activations do not end")


def main() -> int:
    options = command_line("Measure how late many schedules fire.", 3).parse_args()
    moments, count = (1, 3) if options.tiny else (max(1, options.rounds), 100)
    made, began = Samples(f"{count} due at once: fired"), Samples("in their functions")
    with served() as (server, host):
        say(f"{count} schedules")
        names = schedule(host, count)
        say(f"{moments} moments, {EVERY_SECONDS} s apart")
        found = activations(server, moments + 1)
        for name in names:
            host.server.ask("DELETE", f"/v1/schedules/{name}")
    counted = [row for row in found if row[0] > min(one[0] for one in found)] if not options.tiny else found
    made.seconds += [row[1] - row[0] for row in counted]
    began.seconds += [row[2] - row[0] for row in counted]
    rows: list[Row] = [Comparison(made, aim=50), Comparison(began)]
    notes = [f"{moments} moments; the first one, at which not all were registered, is not counted."]
    return finish(rows, notes, options)


if __name__ == "__main__":
    sys.exit(main())
