"""`atoll data snapshot`, `snapshots`, `diff`, `restore`, `rm-snapshot`: earlier states of /data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from atoll.cli.confirmation import DryRun, Yes, confirmed, counted, is_answerable
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import date, print_json
from atoll.cli.terminal import echo
from atoll.storage.protocol.progress import size_text
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from atoll.sdk.data.volume import Volume
    from atoll.storage.snapshots.values import Difference, Snapshot

_MARKS = {"added": "+", "removed": "-", "changed": "M", "attributes": "m"}


def _volume() -> Volume:
    from atoll.sdk.data.volume import Volume

    return Volume()


def snapshot(
    name: str | None = None,
    /,
    *,
    path: str = "/data",
    json: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Keep the present state of a directory of /data, read-only, at /data/.snapshots/NAME; prints the name.

    Parameters
    ----------
    name: str | None
        Letters, digits, dots, `_` and `-`; the time in UTC by default.
    path: str
        The directory.
    json: bool
        Print an object with all that is known of it.
    """
    with _volume() as volume:
        made = volume.snapshot(name, path)
    if json:
        print_json(asdict(made))
        return 0
    echo(made.name)
    took = "sharing blocks" if made.way != "copy" else f"{size_text(made.copied_bytes)} copied"
    echo(f"{made.files} files, {size_text(made.bytes)}, {took}", error=True)
    if made.moving:
        echo(f"{made.moving} files were written meanwhile: each may be a mixture of its states", error=True)
    if made.left_out:
        echo(f"{made.left_out} special files were left out", error=True)
    return 0


def snapshots(*, json: Annotated[bool, cyclopts.Parameter(negative="")] = False) -> int:
    """List the snapshots of /data and its directories, the oldest first.

    Parameters
    ----------
    json: bool
        Print a list of objects with `name`, `path`, `created`, `way`, `generation`, `bytes`, `files`, `copied_bytes`,
        `moving` and `left_out`.
    """
    with _volume() as volume:
        found = volume.snapshots()
    if json:
        print_json([asdict(one) for one in found])
        return 0
    width = max((len(one.name) for one in found), default=0)
    for one in found:
        moment = date(one.created)
        echo(f"{one.name:{width}}  {moment}  {one.files:>9} files  {size_text(one.bytes):>9}  {printable(one.path)}")
    return 0


def diff(old: str, new: str | None = None, /, *, json: Annotated[bool, cyclopts.Parameter(negative="")] = False) -> int:
    """Show changes from a snapshot to a later one, or to the present state: `+` added, `-` removed, `M` changed, `m` mode
    or time only.

    Parameters
    ----------
    old: str
        A snapshot.
    new: str | None
        A later one; the present state by default.
    json: bool
        Print a list of objects with `path`, `change`, `attributes`, `old_kind`, `kind`, `old_size` and `size`.
    """
    with _volume() as volume:
        found = volume.diff(old, new)
    if json:
        print_json([asdict(one) for one in found])
        return 0
    _print_differences(found)
    return 0


def _print_differences(found: Iterable[Difference]) -> None:
    for one in found:
        name = one.path + ("/" if "d" in (one.kind, one.old_kind) else "")
        note = ""
        if one.change == "attributes":
            note = f"  ({', '.join(one.attributes)})"
        elif one.change == "changed" and one.kind != one.old_kind:
            note = "  (another kind)"
        elif one.change == "changed" and one.kind == "f":
            note = f"  ({one.old_size} to {one.size} bytes)"
        echo(f"{_MARKS[one.change]} {printable(name)}{note}")


def restore(
    name: str,
    /,
    *,
    wait: Annotated[bool, cyclopts.Parameter(negative="")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> int:
    """Put a snapshot back in its directory's place, in one step; prints the name of a snapshot of the replaced state.

    Idle sandboxes are ended first. While calls run it is refused, with a list of them. On a terminal it asks first.

    Parameters
    ----------
    name: str
        The snapshot.
    wait: bool
        Wait for the calls that run; new ones wait until it is done.
    yes: bool
        Do not ask.
    dry_run: bool
        Only print the changes, as `diff` does: from the present state to the snapshot.
    """
    from atoll.cli import hosts
    from atoll.storage.snapshots.values import check_name

    if dry_run:
        with _volume() as volume:
            _print_differences(_reversed(one) for one in volume.diff(check_name(name)))
        return 0
    if not yes and is_answerable() and not _may_restore(name):
        return 1
    answer: dict[str, Any] = hosts.chosen().request("volume.restore", {"name": check_name(name), "wait": wait}, _tell)
    if answer.get("kept"):
        echo(answer["kept"])
    return 0


def _reversed(one: Difference) -> Difference:
    """Return a difference from the present state to a snapshot."""
    change = {"added": "removed", "removed": "added"}.get(one.change, one.change)
    return replace(one, change=change, old_kind=one.kind, kind=one.old_kind, old_size=one.size, size=one.old_size)


def _may_restore(name: str) -> bool:
    """Ask whether a snapshot may take its directory's place; a name that is not there is left to the restore."""
    with _volume() as volume:
        found = next((one for one in volume.snapshots() if one.name == name), None)
        if found is None:
            return True
        changes = [
            one for one in volume.diff(name) if one.change != "attributes" and "d" not in (one.kind, one.old_kind)
        ]
    added, gone, changed = (sum(one.change == kind for one in changes) for kind in ("added", "removed", "changed"))
    effects = f"{counted(added, 'newer file')} will go, {gone:,} come back, {changed:,} change"
    things = [f"{found.path}  becomes {_described(found)}"]
    return confirmed(things, [f"{effects}; the present state is kept as a snapshot"], "restore?", replaceable=True)


def _described(one: Snapshot) -> str:
    """Return a snapshot in words: name, moment, files, size."""
    return f"{one.name}  {date(one.created)}, {counted(one.files, 'file')}, {size_text(one.bytes)}"


def _tell(line: str) -> None:
    echo(printable(line), error=True)


def rm_snapshot(*names: str, yes: Yes = False, dry_run: DryRun = False) -> int:
    """Remove snapshots. Their space is freed some time later; data shared with others stays. If one name is missing, none
    is removed.

    A terminal is asked first; elsewhere `--yes` is needed.

    Parameters
    ----------
    names: str
        The snapshots.
    yes: bool
        Do not ask.
    dry_run: bool
        Only print them.
    """
    if not names:
        raise TargetError("name the snapshots to remove")
    with _volume() as volume:
        known = {one.name: one for one in volume.snapshots()}
        going = [known[name] for name in dict.fromkeys(names) if name in known]
        if len(going) == len(set(names)):
            if dry_run:
                for one in going:
                    echo(f"would remove {_described(one)}")
                return 0
            if not yes and not _may_remove(going):
                return 1
        # One that is not there is refused before any goes.
        for name in sorted(dict.fromkeys(names), key=known.__contains__):
            volume.remove_snapshot(name)
    return 0


def _may_remove(going: list[Snapshot]) -> bool:
    """Ask whether snapshots may go."""
    size = size_text(sum(one.bytes for one in going))
    total = f"{counted(len(going), 'snapshot')}, {counted(sum(one.files for one in going), 'file')}, {size}"
    costs = [f"{total}; files that no other snapshot and not /data has are lost"]
    return confirmed([f"{one.path}  {_described(one)}" for one in going], costs, "remove for good?", replaceable=False)
