"""`atoll calls` and `atoll logs CALL`: records of finished calls."""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import Annotated, Any

import cyclopts

from atoll.cli.tables import date, print_json, print_table, size, wrong_usage
from atoll.cli.terminal import echo, write_output
from atoll.host.local import local
from atoll.model.records import OUTCOMES

app = cyclopts.App(name="calls", help="List the calls that are over, and show one of them.", help_format="plaintext")

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@app.command(name="list")
def list_(
    *,
    lines: Annotated[int, cyclopts.Parameter(alias="-n")] = 50,
    function: str = "",
    outcome: str = "",
    since: str = "",
    json: bool = False,
) -> int:
    """List calls, the newest first.

    Parameters
    ----------
    lines: int
        The largest number of calls.
    function: str
        Only calls of this function.
    outcome: str
        Only calls that ended so: ok, error, exited, killed, out_of_memory, timeout, cancelled, lost, refused.
    since: str
        Only calls since then: an age such as 30min, 2h or 7d, or a date and time.
    json: bool
        Print a list of objects; times in seconds since the epoch, sizes in bytes.
    """
    if lines < 1:
        return wrong_usage("-n must be at least 1")
    if outcome and outcome not in OUTCOMES:
        return wrong_usage(f"--outcome is one of {', '.join(OUTCOMES)}; not `{outcome}`")
    filters = {name: value for name, value in (("function", function), ("outcome", outcome)) if value}
    arguments: dict[str, Any] = {"limit": min(lines, 100_000), **filters}
    if since:
        moment = _moment(since)
        if moment is None:
            return wrong_usage(f"--since is an age such as 30min, 2h or 7d, or a date and time; not `{since}`")
        arguments["since"] = moment
    found = local.request("calls.list", arguments)["calls"]
    if json:
        print_json(found)
    elif not found:
        echo("no such calls" if len(arguments) > 1 else "no calls yet")
    else:
        _print_table(found)
    return 0


@app.command
def show(call: str, /, *, json: bool = False) -> int:
    """Show one call: its worker, its use of the machine, its outcome.

    Parameters
    ----------
    call: str
        The call's id, or its beginning.
    json: bool
        Print an object with `calls`, the attempts, and `children`, the calls that its function made.
    """
    if not call:
        return wrong_usage("the call's id, or its beginning, is missing")
    found = local.request("calls.show", {"call": call})
    if json:
        print_json(found)
        return 0
    for record in found["calls"]:
        _print_record(record)
    if found["children"]:
        echo("calls made by it")
        for child in found["children"]:
            echo(f"  {child['call']}  {child['function']}  {child['outcome']}")
    return 0


def output(call: str, *, raw: bool = False, json: bool = False) -> int:
    """Print a call's output and its outcome; the output is escaped on a terminal unless `raw`."""
    if not call:
        return wrong_usage("the call's id, or its beginning, is missing")
    found = local.request("calls.output", {"call": call})
    if json:
        print_json(found)
        return 0
    for record in found["calls"]:
        text = record["output"]
        left_out = record["printed_bytes"] - len(text.encode("utf-8", "surrogatepass"))
        if left_out > 0:
            echo(f"... {size(left_out)} before this are not kept")
        write_output(text if not text or text.endswith("\n") else f"{text}\n", raw=raw)
        summary = f"{record['call']}  {record['function']}: {record['outcome']} after {_duration(record)}"
        echo(f"-- {summary}, {_when(record)}, CPU {record['cpu_seconds']:.2f} s, peak {size(record['peak_bytes'])}")
        if record["error"]:
            _echo_message(f"{record['error']}: {record['message']}")
    return 0


def _print_record(record: dict[str, Any]) -> None:
    echo(f"call         {record['call']}")
    echo(f"function     {record['function']}")
    if record["parent"]:
        echo(f"made by      {record['parent']}")
    echo(f"outcome      {record['outcome']}{' (' + record['error'] + ')' if record['error'] else ''}")
    echo(f"made         {_when(record)}")
    if record["started_at"]:
        echo(f"waited       {record['queue_seconds']:.3f} s")
        echo(f"ran          {record['wall_seconds']:.3f} s")
        echo(f"CPU          {record['cpu_seconds']:.3f} s")
        echo(f"peak memory  {size(record['peak_bytes'])}")
        echo(f"in, out      {size(record['bytes_in'])}, {size(record['bytes_out'])}")
        echo(f"worker       {record['worker']} in {record['sandbox']}")
    echo(f"environment  {record['environment']}")
    echo(f"user         {record['user']}")
    if record["message"]:
        _echo_message(f"  {record['message']}")


def _echo_message(text: str) -> None:
    """Print the message of a function's error; further lines of it are indented, and so are no rows of Atoll's."""
    first, *rest = text.split("\n")
    for line in (first, *(f"  {line}" for line in rest)):
        echo(line)


def _print_table(found: list[dict[str, Any]]) -> None:
    rows = []
    for record in found:
        started = bool(record["started_at"])
        rows.append(
            (
                record["call"],
                record["function"],
                _when(record),
                record["error"] if record["outcome"] == "error" else record["outcome"],
                f"{record['queue_seconds']:.3f} s" if started else "",
                _duration(record) if started else "",
                f"{record['cpu_seconds']:.3f} s" if started else "",
                size(record["peak_bytes"]) if started else "",
            )
        )
    numbers = ("waited", "ran", "cpu", "peak")
    print_table(("call", "function", "made", "outcome", *numbers), rows, right=numbers)


def _moment(text: str) -> float | None:
    """Return seconds since the epoch; None for a text that says no moment."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d|w)", text)
    if match is not None:
        return time.time() - float(match[1]) * _UNITS[match[2]]
    try:
        return dt.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        return None


def _when(record: dict[str, Any]) -> str:
    return date(record["queued_at"])


def _duration(record: dict[str, Any]) -> str:
    return f"{record['wall_seconds']:.3f} s"
