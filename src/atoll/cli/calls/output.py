"""`atoll logs CALL`: the output of a call that is over, or as it comes."""

from __future__ import annotations

import time
from typing import Any

from atoll import errors
from atoll.cli import hosts
from atoll.cli.calls.rows import duration
from atoll.cli.tables import date, print_json, size, wrong_usage
from atoll.cli.terminal import echo, write_output

LOOK_SECONDS = 0.2
RECORD_SECONDS = 5.0
"""Seconds for the record of a call that has ended."""


def output(call: str, *, raw: bool = False, json: bool = False, follow: bool = False) -> int:
    """Print a call's output and its outcome, or its state; the output is escaped on a terminal unless `raw`.

    With `follow` the output is printed as it comes, and the status is 1 where the call does not succeed.
    """
    if not call:
        return wrong_usage("the call's id, or its beginning, is missing")
    if follow and json:
        return wrong_usage("--json shows what is there now; leave out -f")
    if follow:
        return _Follower(raw).follow(call)
    found = hosts.ask("calls.output", {"call": call})
    if json:
        print_json(found)
        return 0
    for row in found.get("unfinished", ()):
        _write(row["output"], row["printed_bytes"], raw=raw)
        echo(f"-- {row['call']}  {row['function']}: {row['state']} for {duration(_age(row))}; -f follows it")
    for record in found["calls"]:
        _write(record["output"], record["printed_bytes"], raw=raw)
        _echo_outcome(record)
    return 0


def _age(row: dict[str, Any]) -> float:
    return max(time.time() - float(row["since"]), 0.0)


def _write(text: str, printed: int, seen: int = 0, *, raw: bool) -> None:
    left_out = printed - seen - len(text.encode("utf-8", "surrogatepass"))
    if left_out > 0:
        echo(f"... {size(left_out)} before this are not kept")
    write_output(text if not text or text.endswith("\n") else f"{text}\n", raw=raw)


def _echo_outcome(record: dict[str, Any]) -> None:
    summary = f"{record['call']}  {record['function']}: {record['outcome']} after {record['wall_seconds']:.3f} s"
    usage = f"CPU {record['cpu_seconds']:.2f} s, peak {size(record['peak_bytes'])}"
    echo(f"-- {summary}, {date(record['queued_at'])}, {usage}")
    if record["error"]:
        echo_message(f"{record['error']}: {record['message']}")


def echo_message(text: str) -> None:
    """Print the message of a function's error; further lines of it are indented, and so are no rows of Atoll's."""
    first, *rest = text.split("\n")
    for line in (first, *(f"  {line}" for line in rest)):
        echo(line)


class _Follower:
    """Prints the output of one call until it is over."""

    def __init__(self, raw: bool) -> None:
        self._raw = raw
        self._worker = self._last = ""
        self._seen = 0
        self._told: tuple[str, int] | None = None

    def follow(self, call: str) -> int:
        known = ""
        patience = 0.0
        while True:
            try:
                found = hosts.ask("calls.output", {"call": known or call, "seen": self._seen})
            except errors.ResourcesUnavailable:
                if not known or time.monotonic() > patience:  # its record comes a moment after its end
                    raise
                time.sleep(LOOK_SECONDS)
                continue
            for row in found.get("unfinished", ()):
                known, patience = row["call"], time.monotonic() + RECORD_SECONDS
                self._show(row)
            if found["calls"]:
                return self._end(found["calls"][-1])
            time.sleep(LOOK_SECONDS)

    def _show(self, row: dict[str, Any]) -> None:
        if row["state"] != "running":
            if self._told != (row["state"], row["position"]):
                self._told = row["state"], row["position"]
                place = f", {row['position']} before it" if row["position"] > 0 else ""
                echo(f"-- {row['call']}  {row['function']}: {row['state']}{place}", error=True)
            return
        if row["worker"] != self._worker:  # the first, or that of the next attempt, which prints from its beginning
            again = self._worker != ""
            self._worker = row["worker"]
            if again:
                self._seen = 0
                return
        self._print(row["output"], row["printed_bytes"])

    def _print(self, text: str, printed: int) -> None:
        left_out = printed - self._seen - len(text.encode("utf-8", "surrogatepass"))
        if left_out > 0 and "\ufffd" not in text:  # such a character may stand for one byte
            echo(f"... {size(left_out)} before this are not kept")
        write_output(text, raw=self._raw)
        self._seen, self._last = printed, text[-1:] or self._last

    def _end(self, record: dict[str, Any]) -> int:
        if record["worker"] not in {"", self._worker}:
            self._seen = 0
        rest = record["output"].encode("utf-8", "surrogatepass")
        missing = record["printed_bytes"] - self._seen
        self._print(
            rest[len(rest) - min(max(missing, 0), len(rest)) :].decode("utf-8", "replace"), record["printed_bytes"]
        )
        if self._last not in {"", "\n"}:
            echo()
        _echo_outcome(record)
        return 0 if record["outcome"] == "ok" else 1
