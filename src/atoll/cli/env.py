"""`atoll env`: the environments that functions run in."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import cyclopts

from atoll.cli import hosts
from atoll.cli.confirmation import DryRun, Yes, confirmed, counted, is_answerable
from atoll.cli.programs import target as program
from atoll.cli.tables import age, print_json, print_table, size, wrong_usage
from atoll.cli.terminal import echo, echo_lines
from atoll.host import index_settings
from atoll.host.contract import Host
from atoll.model.specs import EnvironmentSpec
from atoll.sdk.display.build_display import BuildDisplay
from atoll.sdk.requirements import contents, entries

app = cyclopts.App(name="env", help="List, build, lock, upgrade and remove environments.", help_format="plaintext")

Requirement = Annotated[
    list[str] | None,
    cyclopts.Parameter(name=("--requirement", "-r"), negative="", allow_leading_hyphen=True),
]
Python = Annotated[str, cyclopts.Parameter(name=("--python", "-p"))]


@app.command(name="list")
def list_(*, json: bool = False) -> int:
    """List the environments, the most recently used first.

    Parameters
    ----------
    json: bool
        Print a list of objects; sizes in bytes, times in seconds since the epoch.
    """
    found = hosts.ask("environments.list", {})["environments"]
    if json:
        print_json(found)
        return 0
    hosts.tell_server()
    if not found:
        echo("no environments; the first call of a function builds one")
    else:
        _print_table(found)
    return 0


@app.command
def show(key: str, /, *, json: bool = False) -> int:
    """Show one environment: its requirements, its packages, and the log of its build.

    Parameters
    ----------
    key: str
        The environment's key, or its beginning.
    json: bool
        Print an object with `environment`, `lock`, `log`, `preload` and `preload_data`.
    """
    found = hosts.ask("environments.show", {"key": key})
    if json:
        print_json(found)
        return 0
    record = found["environment"]
    echo(f"environment   {record['key']}")
    echo(f"python        {record['python_version']}" + (f" ({path})" if (path := record["interpreter"]) else ""))
    echo(f"size          {size(record['size_bytes'])}")
    echo(f"built         {age(record['created'])} ago in {record['build_seconds']:.1f} s")
    echo(f"last used     {age(record['last_used'])} ago{', in use now' if record['in_use'] else ''}")
    for title, lines in (
        ("requirements", record["requirements"]),
        ("preloaded into new workers", _preloaded(found["preload"])),
        ('preloaded with results="data"', _preloaded(found["preload_data"])),
        ("installed", found["lock"].splitlines()),
        ("build log", found["log"].splitlines()),
    ):
        echo()
        echo(title)
        for line in lines or ["none"]:
            echo(f"  {line}")
    return 0


def _preloaded(preload: dict[str, Any]) -> list[str]:
    refused = [f"not {name}: {reason}" for name, reason in preload["refused"].items()]
    return [*preload["modules"], *refused]


@app.command
def build(target: str = "", /, *, requirement: Requirement = None, python: Python = "", json: bool = False) -> int:
    """Build an environment now, so that the first call need not wait for it.

    Parameters
    ----------
    target: str
        FILE.py::FUNC or package.module::FUNC, a function whose environment is meant.
    requirement: list[str]
        A requirement, instead of a function's; may be given several times.
    python: str
        The version of Python, with --requirement.
    json: bool
        Print the environment as an object.
    """
    host, spec = _wanted(target, requirement, python)
    with BuildDisplay() as tell:
        answer = host.request("environments.build", {"environment": spec.to_data()}, tell)
    if json:
        print_json(answer["environment"])
    else:
        echo(answer["environment"]["key"])
    return 0


@app.command
def lock(target: str = "", /, *, requirement: Requirement = None, python: Python = "") -> int:
    """Print an environment's packages as pinned requirements with hashes; it is built first if absent.

    Parameters
    ----------
    target: str
        FILE.py::FUNC or package.module::FUNC, a function whose environment is meant.
    requirement: list[str]
        A requirement, instead of a function's; may be given several times.
    python: str
        The version of Python, with --requirement.
    """
    host, spec = _wanted(target, requirement, python)
    with BuildDisplay() as tell:
        answer = host.request("environments.lock", {"environment": spec.to_data()}, tell)
    if lines := answer["lock"].rstrip("\n"):
        echo_lines(lines)
    return 0


@app.command
def upgrade(target: str = "", /, *, requirement: Requirement = None, python: Python = "", json: bool = False) -> int:
    """Build an environment anew with the newest versions that its requirements allow.

    Calls that run keep the old one, and it goes with them.

    Parameters
    ----------
    target: str
        FILE.py::FUNC or package.module::FUNC, a function whose environment is meant.
    requirement: list[str]
        A requirement, instead of a function's; may be given several times.
    python: str
        The version of Python, with --requirement.
    json: bool
        Print an object with `environment` and `changed`.
    """
    host, spec = _wanted(target, requirement, python)
    with BuildDisplay() as tell:
        answer = host.request("environments.upgrade", {"environment": spec.to_data()}, tell)
    if json:
        print_json(answer)
    else:
        echo(answer["environment"]["key"] + ("" if answer["changed"] else " is up to date"))
    return 0


@app.command
def prune(
    *,
    unused_days: float = 0.0,
    cache: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    all_: Annotated[bool, cyclopts.Parameter(name="--all", negative="")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: bool = False,
) -> int:
    """Remove environments that nothing uses now. They are built again, with the same versions, when asked for.

    On a terminal it asks first.

    Parameters
    ----------
    unused_days: float
        Keep environments that were used within so many days.
    cache: bool
        Remove the packages that are kept for further builds instead; the environments stay.
    all_: bool
        Remove both; that frees the most space.
    yes: bool
        Do not ask.
    dry_run: bool
        Only print the names and sizes.
    json: bool
        Print an object with `removed` and `in_use`; with the cache also `cache_bytes` and `freed_bytes`.
    """
    if unused_days < 0:
        return wrong_usage("--unused-days must be at least 0")
    if cache and (all_ or unused_days):
        return wrong_usage("--cache removes no environments; --all removes both")
    arguments: dict[str, Any] = {
        "unused_seconds": unused_days * 86400,
        "cache": cache or all_,
        "environments": not cache,
    }
    host = hosts.chosen()
    if not json:
        hosts.tell_server(host)
    found: dict[str, Any] | None = None
    if dry_run or (not yes and is_answerable()):
        found = host.request("environments.prune", {**arguments, "dry_run": True}, _tell)
        if not dry_run and (found["removed"] or found.get("cache_bytes")):
            if not _confirmed(found):
                return 1
            arguments["keys"] = [record["key"] for record in found["removed"]]
            found = None
    if found is None:
        found = host.request("environments.prune", arguments, _tell)
    if json:
        print_json(found)
    else:
        _print_pruned(found, "would remove" if dry_run else "removed")
    return 0


def _confirmed(found: dict[str, Any]) -> bool:
    """Ask whether environments and caches may go."""
    things = [
        f"{record['key'][:8]}  Python {record['python_version']}  {size(record['size_bytes'])}  "
        + (", ".join(record["requirements"]) or "no requirements")
        for record in found["removed"]
    ]
    costs = []
    if things:
        total = size(sum(record["size_bytes"] for record in found["removed"]))
        costs.append(f"{counted(len(things), 'environment')}, {total}; built again when a function asks for it")
    if found.get("cache_bytes"):
        costs.append(f"{_cached(found)}; later builds download their packages again")
    return confirmed(things, costs, "remove?", replaceable=True)


def _cached(found: dict[str, Any]) -> str:
    kept = found["cache_bytes"] - found["freed_bytes"]
    shared = f", {size(kept)} of them shared with environments" if kept > 0 else ""
    return f"{size(found['cache_bytes'])} of packages kept for further builds{shared}"


def _print_pruned(found: dict[str, Any], verb: str) -> None:
    for record in found["removed"]:
        echo(f"{verb} {record['key']}  {size(record['size_bytes'])}")
    for record in found["in_use"]:
        echo(f"in use {record['key']}")
    if found.get("cache_bytes"):
        echo(f"{verb} {_cached(found)}")
    elif not found["removed"]:
        echo("nothing to remove")


def _wanted(target: str, requirements: list[str] | None, python: str) -> tuple[Host, EnvironmentSpec]:
    """Return the environment that a command line names, and the host that has it; exit with 2 on wrong usage."""
    if bool(target) == bool(requirements):
        raise SystemExit(wrong_usage("give either FILE.py::FUNC or -r REQUIREMENT"))
    if target:
        if python:
            raise SystemExit(wrong_usage("--python goes with -r; a function says its own `python_version`"))
        function = program.described(target)
        return function.options.host or hosts.chosen(), function.environment_spec()
    interpreter = os.path.abspath(getattr(sys, "_base_executable", None) or sys.executable)
    given = contents.read(entries.absolute(requirements or (), (os.getcwd(),)))
    return hosts.chosen(), EnvironmentSpec("virtualenv", given, python, interpreter, index_settings.collect(given))


def _tell(line: str) -> None:
    echo(line, error=True)


def _print_table(found: list[dict[str, Any]]) -> None:
    rows = []
    for record in found:
        state = "now" if record["in_use"] else age(record["last_used"])
        rows.append(
            (
                record["key"],
                record["python_version"],
                size(record["size_bytes"]),
                age(record["created"]),
                f"{state} (old)" if record["superseded"] else state,
                ", ".join(record["requirements"]) or "none",
            )
        )
    print_table(("key", "python", "size", "built", "used", "requirements"), rows, fold=("requirements",))
