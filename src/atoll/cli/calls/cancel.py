"""`atoll cancel CALL…`: the end of calls that wait or run, whichever process made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atoll import errors
from atoll.cli import hosts
from atoll.cli.calls.rows import SHORT_ID, duration
from atoll.cli.tables import print_json, wrong_usage
from atoll.cli.terminal import echo, echo_lines


def cancel(*calls: str, json: bool = False) -> int:
    """Cancel calls that wait or run.

    A call that runs is interrupted, as by Ctrl-C, and killed after its grace. Its caller gets `CallCancelled`.

    Parameters
    ----------
    calls: str
        Ids of calls or batches, or 4 characters or more of their beginnings.
    json: bool
        Print a list with an object for each call that was cancelled.
    """
    if not calls:
        return wrong_usage("name the calls: `atoll calls list --running` shows them")
    done, failed = [], False
    for call in _waiting_first(calls):
        try:
            found = hosts.ask_running("calls.cancel", {"call": call})
        except errors.AtollError as error:
            echo_lines(f"error: {error}", error=True)
            failed = True
            continue
        if found is None:
            echo(f"error: no daemon is running, and so no call `{call}`", error=True)
            failed = True
            continue
        done.append(found)
        if not json:
            echo(said(found))
    if json:
        print_json(done)
    return int(failed)


def _waiting_first(calls: Sequence[str]) -> list[str]:
    """Return the calls in an order in which none begins because of the end of another."""
    found = hosts.ask_running("calls.running", {}) if len(calls) > 1 else None
    waiting = tuple(str(row["call"]) for row in (found or {}).get("calls", ()) if row["state"] != "running")
    return sorted(calls, key=lambda call: not any(one.startswith(call) for one in waiting))


def said(found: dict[str, Any]) -> str:
    """Return a sentence about a cancellation, from the daemon's answer."""
    name, seconds = f"{found['call'][:SHORT_ID]} {found['function']}", duration(found["seconds"])
    if found["state"] == "batch":
        count = found["calls"]
        if not count:
            return f"all calls of batch {name} have ended: nothing to cancel"
        return (
            f"cancelled {count} call{'s' * (count != 1)} of batch {name}; `resume()` of its handle has them made again"
        )
    if found["state"] == "waiting":
        return f"cancelled {name}, which waited for {seconds}"
    if found["state"] == "building":
        return f"cancelled {name}, whose environment was being built for {seconds}"
    if found["ended"]:
        return f"cancelled {name}, which ran for {seconds}"
    if found.get("earlier"):
        return f"told {name} to end, which has run for {seconds} under the daemon before this one"
    if not found["grace_seconds"]:
        return f"interrupted {name}, which has run for {seconds} and has its grace to end"
    return f"interrupted {name}, which ran for {seconds}: it has {found['grace_seconds']:g} s to end"
