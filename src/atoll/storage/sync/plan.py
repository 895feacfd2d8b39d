"""From two trees to the operations that turn one into the other: no I/O.

The result of a plan is a whole tree. The storage peer builds that tree beside the old one, out of received contents,
copies of the target's files and links to unchanged ones, and switches over once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import SyncError
from atoll.storage.files.tree import DIRECTORY, FILE, Entry, Tree, parent_of
from atoll.terminal_text import printable


@dataclass(frozen=True)
class Plan:
    """The changes of a target; paths that are not named do not change.

    Args:
        drop: paths that go, each one named (those below a dropped directory too).
        put: entries that come or change.
        copy: paths in `put` whose content exists at the target already, under another mode.
        keeps: whether entries that the source does not have may remain, also ones that come only later.
        existing_directories: paths in `put` that are directories at the target already; only mode or mtime changes.
    """

    drop: frozenset[str] = frozenset()
    put: Tree = field(default_factory=dict)
    copy: frozenset[str] = frozenset()
    keeps: bool = False
    existing_directories: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.drop or self.put)

    @property
    def send(self) -> list[str]:
        """The paths of files whose content must travel, in the order in which it does."""
        return sorted(path for path, entry in self.put.items() if entry.kind == FILE and path not in self.copy)

    @property
    def send_bytes(self) -> int:
        """The bytes of content that travel."""
        return sum(self.put[path].size for path in self.send)

    def operations(self) -> list[dict[str, Any]]:
        """Return the plan as data, in the order of the paths: for each one its `path` (the root is empty), the
        `operation` (`send`, `mode`, `mkdir`, `link` or `remove`), and for a path that comes or changes its `kind`, `mode`,
        `size` in bytes, `mtime_ns`, and a symlink's `target`."""
        send = set(self.send)
        found: list[dict[str, Any]] = []
        for path in sorted(self.drop | self.put.keys()):
            if path not in self.put:
                found.append({"path": path, "operation": "remove"})
                continue
            entry = self.put[path]
            verb = (
                "send" if path in send else "mode" if path in self.existing_directories else _VERBS[entry.kind].strip()
            )
            found.append({"path": path, "operation": verb, **entry._asdict()})
        return found

    def lines(self) -> Iterator[str]:
        """Describe the plan for people, one operation a line, in the order of the paths."""
        send = set(self.send)
        for path in sorted(self.drop | self.put.keys()):
            name = printable(path) or "."
            if path in send:
                yield f"send    {name}  ({self.put[path].size} bytes)"
            elif path in self.existing_directories:
                yield f"mode    {name}"
            elif path in self.put:
                entry = self.put[path]
                yield f"{_VERBS[entry.kind]}{name}" + (f" -> {printable(entry.target)}" if entry.target else "")
            else:
                yield f"remove  {name}"


_VERBS = {FILE: "mode    ", DIRECTORY: "mkdir   ", "l": "link    "}


def apply(plan: Plan, target: Tree) -> Tree:
    """Return the tree that the plan makes of `target`."""
    result = {path: entry for path, entry in target.items() if path not in plan.drop}
    result.update(plan.put)
    return result


def check_whole(tree: Tree) -> None:
    """Check that a tree can exist: its root is a directory and so is every parent.

    Raises:
        ValueError: it cannot; the message names the path.
    """
    for path in tree:
        parent = tree.get(parent_of(path))
        if parent is None or parent.kind != DIRECTORY:
            raise ValueError(f"`{printable(path)}` has no directory above it")


def check_fits(plan: Plan, target: Tree) -> None:
    """Check that a plan turns a whole tree into a whole one: `check_whole(apply(plan, target))` without building it.

    Raises:
        ValueError: it is not; the message names a path.
    """
    if plan.drop & plan.put.keys():
        raise ValueError(f"`{printable(min(plan.drop & plan.put.keys()))}` both comes and goes")
    gone = {path for path in plan.drop if path in target and target[path].kind == DIRECTORY}
    for path, entry in plan.put.items():
        parent = parent_of(path)
        above = plan.put.get(parent) or (None if parent in plan.drop else target.get(parent))
        if above is None or above.kind != DIRECTORY:
            raise ValueError(f"`{printable(path)}` has no directory above it")
        if entry.kind != DIRECTORY and path in target and target[path].kind == DIRECTORY:
            gone.add(path)
    if "" in plan.drop or ("" not in plan.put and "" not in target):
        raise ValueError("the tree has no root")
    for path in target if gone else ():
        if path not in plan.drop and parent_of(path) in gone and path:
            raise ValueError(f"`{printable(path)}` has no directory above it")


def plan(
    source: Tree,
    target: Tree,
    *,
    delete: bool = True,
    kept: Callable[[str, bool], bool] | None = None,
    suspect: Container[str] = frozenset(),
    alike: Container[str] = frozenset(),
) -> Plan:
    """Return the plan that turns `target` into a mirror of `source`.

    Args:
        source: the wanted tree; has a root.
        target: the target's current tree; empty when there is none.
        delete: whether entries that the source does not have go.
        kept: called with such a path and whether it is a directory, parents first; returns whether it is kept all the
            same, with everything below it. None keeps none.
        suspect: files whose content may differ although size and modification time agree.
        alike: files whose content is the same although the modification time differs.

    Raises:
        SyncError: the source has something else where the target has a directory with names that must stay, or without
            `delete` a directory where the target has a file.
    """
    put: Tree = {}
    copy: set[str] = set()
    existing: set[str] = set()
    for path, entry in source.items():
        old = target.get(path)
        if old != entry:
            if not delete and old is not None and old.kind == FILE and entry.kind == DIRECTORY:
                raise SyncError(
                    f"`{printable(path) or '.'}` is a file at the target, and a directory in the source",
                    hint="remove or rename one of the two",
                )
            put[path] = entry
            if old is not None and entry.kind == old.kind == DIRECTORY:
                existing.add(path)
            if old is None or not old.mode & 0o400:
                continue
            if path in alike or (_same_content(entry, old) and path not in suspect):
                copy.add(path)
        elif entry.kind == FILE and path in suspect:
            put[path] = entry
    extra = sorted(path for path in target if path not in source)
    stays: set[str] = set()
    for path in extra:
        # Sorted, so that the parent has been decided before; one that is something else in the source is asked for now.
        parent = parent_of(path)
        stay = not delete or parent in stays
        if not stay and kept is not None:
            replaced = parent in source and source[parent].kind != DIRECTORY
            stay = kept(path, target[path].kind == DIRECTORY) or (replaced and kept(parent, True))
        if stay:
            stays.add(path)
    return Plan(
        _drops(source, extra, stays, excluded=delete),
        put,
        frozenset(copy),
        not delete or kept is not None,
        frozenset(existing),
    )


def _same_content(new: Entry, old: Entry) -> bool:
    return new.kind == old.kind == FILE and (new.size, new.mtime_ns) == (old.size, old.mtime_ns)


def _drops(source: Tree, extra: list[str], stays: set[str], *, excluded: bool) -> frozenset[str]:
    """Return the paths that go; a directory above a kept path does not go, and cannot become something else."""
    needed: set[str] = set()
    for path in stays:
        parent = parent_of(path)
        while parent not in needed:
            needed.add(parent)
            if parent in source and source[parent].kind != DIRECTORY:
                raise SyncError(
                    f"`{printable(parent)}` is a directory at the target that keeps `{printable(path)}`,"
                    " and something else in the source",
                    hint="remove or rename one of the two"
                    + (", or do not exclude the names below it" if excluded else ""),
                )
            parent = parent_of(parent)
    return frozenset(path for path in extra if path not in stays and path not in needed)
