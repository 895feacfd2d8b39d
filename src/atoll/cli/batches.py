"""Batches of detached calls on the command line: one line for each, and a bar for one that is followed."""

from __future__ import annotations

from typing import Any

from atoll.cli import hosts
from atoll.cli.columns import Column, print_fitted
from atoll.cli.tables import date, print_json
from atoll.cli.terminal import echo
from atoll.host import detached
from atoll.sdk.detached.batch import BatchHandle
from atoll.sdk.display import map_bar

COLUMNS = (
    Column("batch"),
    Column("function", least=12),
    Column("done", right=True),
    Column("calls", least=16),
    Column("made", rank=1),
)
LIVE = ("waiting", "running")
MOST_WAIT_SECONDS = 600.0
SHORT_ID = 8
"""Characters of an id that are shown where it is to be typed."""


def print_batches(limit: int, function: str, since: float, *, json: bool) -> None:
    """Print a line for each batch, the newest first."""
    asked: list[dict[str, Any]] = detached.request(hosts.chosen(), "detached.batches", {"limit": limit}).value[
        "batches"
    ]
    found = [one for one in asked if function in {"", one["function"]} and one["queued_at"] >= since]
    if json:
        print_json(found)
        return
    hosts.tell_server()
    if not found:
        echo("no such batches" if function or since else "no batches: `spawn_map` makes them")
    else:
        print_fitted(COLUMNS, [_cells(one) for one in found])


def _cells(batch: dict[str, Any]) -> tuple[str, ...]:
    return (
        batch["batch"][:SHORT_ID],
        batch["function"],
        f"{_finished(batch['counts']):,}/{batch['calls']:,}",
        in_words(batch["counts"]),
        date(batch["queued_at"]),
    )


def in_words(counts: dict[str, int]) -> str:
    """Return the counts of a batch: those that are not over first, then the outcomes."""
    order = (*LIVE, "ok", *sorted(set(counts) - {*LIVE, "ok"}))
    return " \u00b7 ".join(f"{counts[name]:,} {name}" for name in order if counts.get(name))


def _finished(counts: dict[str, int]) -> int:
    return sum(count for name, count in counts.items() if name not in LIVE)


def follow(batch: BatchHandle[Any], function: str) -> int:
    """Show a bar until all calls of a batch have ended; return the exit status."""
    counts = batch.counts()

    def numbers() -> map_bar.Counts:
        done = _finished(counts)
        return map_bar.Counts(done, done - counts.get("ok", 0), counts.get("running", 0), sum(counts.values()))

    bar = map_bar.make(function, function, numbers)
    try:
        while any(counts.get(state) for state in LIVE):
            seconds = MOST_WAIT_SECONDS if bar is None else bar.seconds
            arguments = {"batch": batch.id, "revision": _finished(counts), "seconds": seconds}
            counts = detached.request(hosts.chosen(), "detached.counts", arguments).value["counts"]
            if bar is not None:
                bar.tick()
    except KeyboardInterrupt:
        echo(f"the batch goes on: `atoll attach {batch.id[:SHORT_ID]}` follows it again", error=True)
        raise
    finally:
        if bar is not None:
            bar.end(None)
    failed = _finished(counts) - counts.get("ok", 0)
    echo(f"batch {batch.id[:SHORT_ID]} of {function}: {in_words(counts)}")
    if failed:
        echo(f"`BatchHandle.from_id({batch.id!r})` has `failed()` and `resume()`", error=True)
    return int(failed > 0)


def find(start: str) -> tuple[BatchHandle[Any], str] | None:
    """Return the batch whose id is `start` or begins so, with its function; None where there is none."""
    found = detached.request(hosts.chosen(), "detached.batches", {"start": start, "limit": 2}).value["batches"]
    named = [one for one in found if one["batch"] == start] or found
    return (BatchHandle(named[0]["batch"]), named[0]["function"]) if len(named) == 1 else None
