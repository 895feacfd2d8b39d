"""Answers of several machines as one. Pure.

Rows get `node`, the machine's name. Sandboxes and workers are numbered on each machine: ids of other machines than the
server's own end in `@NODE`, as a line to a port of such a worker names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from atoll.model.machine_types import MACHINE_TYPES
from atoll.server.cluster.contract import LOCAL
from atoll.server.machines.asks import Answers

Row = dict[str, Any]
_PLACES = ("id", "sandbox", "worker")


def status(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return the `status` of all: rows of every machine, and the daemon of the server's own, or of the first."""
    first = next(iter(answers.values()))
    daemon = {**first["daemon"], "waiting": sum(one["daemon"]["waiting"] for one in answers.values())}
    rows = {name: _rows(answers, name) for name in ("sandboxes", "workers")}
    places = {name: [_placed(row) for row in found] for name, found in rows.items()}
    capacities = {node: one["capacity"] for node, one in answers.items()}
    return {
        **first,
        **places,
        "daemon": daemon,
        "calls": _running(answers),
        "capacity": capacity(capacities, {}),
    }


def capacity(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return the sums of all; a machine type has in full whoever one machine serves in full."""
    parts = list(answers.values())
    types: dict[str, Row] = {}
    for part in parts:
        for row in part["types"]:
            known = types.setdefault(row["name"], {**row, "fits_now": 0, "full": False, "largest": False})
            known["fits_now"] += row["fits_now"]
            known["full"] = known["full"] or row["full"]
            known["largest"] = known["largest"] or row["largest"]
    ordered = [types[name] for name in MACHINE_TYPES if name in types]
    for kind in (False, True):
        largest = [row for row in ordered if row["largest"] and bool(row["gpus"]) is kind]
        for row in largest[:-1]:
            row["largest"] = False
    return {
        "machine": {
            "cpus": sum(part["machine"]["cpus"] for part in parts),
            "memory_bytes": sum(part["machine"]["memory_bytes"] for part in parts),
            "gpus": [gpu for part in parts for gpu in part["machine"]["gpus"]],
        },
        "free": {name: sum(part["free"][name] for part in parts) for name in ("cpus", "memory_bytes", "gpus")},
        "types": ordered,
    }


def running(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return the calls that are not over, those that run first."""
    return {"calls": _running(answers)}


def recorded(answers: Answers, asked: Mapping[str, Any]) -> Row:
    """Return the asked part of the calls that are over, newest first; each machine gave all from its newest on."""
    rows = sorted(_rows(answers, "calls"), key=lambda row: -float(row.get("queued_at", 0.0)))
    offset, limit = asked.get("offset", 0), asked.get("limit", 50)
    return {"calls": [_placed(row) for row in rows[offset : offset + limit]]}


def usage(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return sums of the groups, those with the most time first."""
    keys, most = ("function", "day", "environment", "outcome"), ("peak_bytes",)
    groups: dict[tuple[Any, ...], Row] = {}
    for answer in answers.values():
        for row in answer["usage"]:
            known = groups.setdefault(tuple(row[name] for name in keys), {**dict.fromkeys(row, 0), **_named(row, keys)})
            for name, value in row.items():
                if name not in keys:
                    known[name] = max(known[name], value) if name in most else known[name] + (value or 0)
    return {"usage": sorted(groups.values(), key=lambda row: -row["wall_seconds"])}


def detached(answers: Answers, asked: Mapping[str, Any]) -> Row:
    """Return rows of detached calls, newest first."""
    rows = sorted(_rows(answers, "calls"), key=lambda row: -float(row.get("queued_at", 0.0)))
    return {"calls": rows[: asked.get("limit", len(rows))]}


def batches(answers: Answers, asked: Mapping[str, Any]) -> Row:
    """Return batches, newest first; a batch is on one machine."""
    rows = sorted(_rows(answers, "batches"), key=lambda row: -float(row.get("queued_at", 0.0)))
    return {"batches": rows[: asked.get("limit", len(rows))]}


def queues(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return the calls of deployed functions that wait and run, on all machines together."""
    found: dict[str, dict[str, int]] = {}
    for answer in answers.values():
        for name, states in answer["queues"].items():
            known = found.setdefault(name, {})
            for state, count in states.items():
                known[state] = known.get(state, 0) + count
    return {"queues": found}


def wanted(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return the workers of all machines that hold what somebody waits for."""
    found = [(node, name) for node, answer in answers.items() for name in answer["workers"]]
    return {"workers": [name if node == LOCAL else f"{name}@{node}" for node, name in found]}


def flushed(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return how many calls were cancelled on all machines."""
    return {"calls": sum(one["calls"] for one in answers.values())}


def environments(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return the environments of all machines, each once, with the machines that have it in `nodes`."""
    found: dict[str, Row] = {}
    for node, answer in answers.items():
        for row in answer["environments"]:
            found.setdefault(row["key"], {**row, "nodes": []})["nodes"].append(node)
    return {"environments": list(found.values())}


def pruned(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return what was removed on all machines, and the bytes of their caches."""
    answer: Row = {"removed": _rows(answers, "removed"), "in_use": _rows(answers, "in_use")}
    for name in ("cache_bytes", "freed_bytes"):
        values = [one[name] for one in answers.values() if name in one]
        answer |= {name: sum(values)} if values else {}
    return answer


def upgraded(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return the environment, and whether any machine has another one now."""
    return {**next(iter(answers.values())), "changed": any(one["changed"] for one in answers.values())}


def first(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return the answer of the server's own machine, or of the first."""
    return next(iter(answers.values()))


def removed(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return where a removed user's volume is kept: on the first machine that had it."""
    return {"kept": next((one["kept"] for one in answers.values() if one["kept"]), "")}


def rotated(answers: Answers, _: Mapping[str, Any]) -> Row:
    """Return how many values were encrypted anew on all machines."""
    return {"values": sum(one["values"] for one in answers.values())}


MERGED: dict[str, Callable[[Answers, Mapping[str, Any]], Row]] = {
    "status": status,
    "capacity": capacity,
    "calls.running": running,
    "calls.list": recorded,
    "calls.usage": usage,
    "detached.list": detached,
    "detached.batches": batches,
    "detached.queues": queues,
    "environments.list": environments,
    "wanted": wanted,
}
"""Requests that all machines that are there answer together."""


def placed(node: str, answer: Row) -> Row:
    """Return one machine's answer about a call, its rows with their machine."""
    rows = {
        name: [_placed({**row, "node": node}) for row in found] for name, found in answer.items() if _is_rows(found)
    }
    return {**answer, **rows, **({"node": node} if "call" in answer else {})}


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _rows(answers: Answers, name: str) -> list[Row]:
    return [{**row, "node": node} for node, answer in answers.items() for row in answer[name]]


def _running(answers: Answers) -> list[Row]:
    rows = [_placed(row) for row in _rows(answers, "calls")]
    return sorted(rows, key=lambda row: row.get("state") != "running")


def _placed(row: Row) -> Row:
    node = row["node"]
    if node == LOCAL:
        return row
    return {**row, **{name: f"{row[name]}@{node}" for name in _PLACES if row.get(name)}}


def _named(row: Row, names: Iterable[str]) -> Row:
    return {name: row[name] for name in names}
