"""The checks of a file system that two machines share (`atoll doctor --data --peer`), each tried from both sides.

A change that the other machine sees late is reported with the seconds that it took: a look before each change has filled
the caches whose age is measured.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from atoll import linux
from atoll.model.findings import Finding

ROUNDS = 20
UNLOCK_SECONDS = 5.0
APPEND_SECONDS = 0.5
CLOCK_SECONDS = 10.0
"""The most by which two machines' clocks may differ: `staging` knows leftovers by their age."""
LATE_SECONDS = 0.5
"""A change that is seen later counts as not seen."""
_UNCACHED = (
    "mount it without caches of attributes and names: `--attr-cache 0 --entry-cache 0 --dir-entry-cache 0` (JuiceFS), "
    "`actimeo=0,lookupcache=none` (NFS)"
)
_UNSKIPPED = "mount it with `--skip-dir-mtime 0` (JuiceFS), or `actimeo=0,lookupcache=none` (NFS)"
_TICK_SECONDS = 0.02
"""Longer than the steps of file times that kernels take from their timer."""
_SERVE = "use a file system that keeps locks for all machines: NFS 4, CephFS, Lustre with `-o flock`, JuiceFS"


class Side(Protocol):
    """One of the two machines."""

    def perform(self, step: str, arguments: dict[str, Any]) -> Any:
        """Perform a step (`peer_steps.Steps`) there."""


class Unseen(Exception):
    """A promise does not hold, though no step has failed."""


@dataclass(frozen=True)
class PeerCheck:
    """One promise between two machines and its trial.

    Args:
        name, needed, loses, fix: see `Finding`.
        attempt: the trial, of two sides; it returns its finding, and raises `Unseen` or `OSError`.
    """

    name: str
    needed: bool
    attempt: Callable[[Side, Side], str]
    loses: str
    fix: str


def _do(side: Side, step: str, **arguments: Any) -> Any:
    return side.perform(step, arguments)


def _together(*work: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(work)) as threads:
        return [one.result() for one in [threads.submit(one) for one in work]]


def _seen(side: Side, look: str, name: str, value: Any, change: str) -> float:
    """Return after how many seconds a side sees a change."""
    seconds = float(_do(side, "until", look=look, name=name, value=value))
    if seconds < 0:
        raise Unseen(f"{change} is never seen on the other machine")
    if seconds > LATE_SECONDS:
        raise Unseen(f"{change} is seen after {seconds:.1f} s on the other machine")
    return seconds


def _late(*seconds: float) -> str:
    return "at once" if max(seconds) == 0 else f"within {max(seconds):.2f} s"


def _same(here: Side, there: Side) -> str:
    _do(here, "write", name="same", text="made here")
    if _do(there, "until", look="read", name="same", value="made here") < 0:
        raise Unseen("a file that is made here does not appear there")
    return "a file that is made here appears there"


def _clocks(here: Side, there: Side) -> str:
    before, other, after = _do(here, "clock"), _do(there, "clock"), _do(here, "clock")
    apart = other - (before + after) / 2
    _do(here, "write", name="clock", text="x")
    server = _do(here, "modified", name="clock") - _do(here, "clock")
    worst = max(abs(apart), abs(server))
    if worst > CLOCK_SECONDS:
        raise Unseen(f"the other machine's clock differs by {apart:.1f} s, the file system's by {server:.1f} s")
    return f"differ by {worst:.2f} s"


def _close_to_open(here: Side, there: Side) -> str:
    stale = 0
    for number in range(ROUNDS):
        writer, reader = (here, there) if number % 2 == 0 else (there, here)
        text = f"version {number} " + "x" * (number * 7)
        _do(writer, "write", name="versions", text=text)
        stale += _do(reader, "read", name="versions") != text
    if stale:
        raise Unseen(f"{stale} of {ROUNDS} files that were closed are read with old contents")
    return f"{ROUNDS} of {ROUNDS} reads have the last contents"


def _attributes(here: Side, there: Side) -> str:
    took = []
    for number, (writer, reader) in enumerate(((here, there), (there, here))):
        name = f"attributes-{number}"
        _do(writer, "write", name=name, text="x")
        _do(reader, "size", name=name)
        _do(writer, "write", name=name, text="x" * 100)
        took.append(_seen(reader, "size", name, 100, "a new size"))
    return _late(*took)


def _names(here: Side, there: Side) -> str:
    took = []
    for number, (writer, reader) in enumerate(((here, there), (there, here))):
        name = f"names-{number}"
        _do(reader, "size", name=name)  # that there is none is remembered, too
        _do(reader, "listed", name=name)
        _do(writer, "write", name=name, text="x")
        took += [_seen(reader, look, name, value, "a new name") for look, value in (("size", 1), ("listed", True))]
        _do(writer, "remove", name=name)
        took += [_seen(reader, look, name, value, "a removal") for look, value in (("size", -1), ("listed", False))]
    return _late(*took)


def _directory_times(here: Side, there: Side) -> str:
    for number, (writer, reader) in enumerate(((here, there), (there, here)) * 3):
        name = f"times-{number}"
        _do(writer, "make", name=name, text="x")
        time.sleep(_TICK_SECONDS)
        before = _do(reader, "modified", name=name)
        _do(writer, "add", name=name)
        if _do(reader, "modified", name=name) == before:
            raise Unseen("a directory has the same time after a file was added to it")
    return "each new file changes its directory's"


def _rename(here: Side, there: Side) -> str:
    took = []
    for number, (writer, reader) in enumerate(((here, there), (there, here))):
        old, new = f"rename-{number}", f"renamed-{number}"
        _do(writer, "write", name=new, text="before")
        _do(reader, "read", name=new)
        _do(writer, "write", name=old, text="after")
        _do(writer, "rename", name=old, other=new)
        took.append(_seen(reader, "read", new, "after", "a file that takes another's place"))
    return _late(*took)


def _exchange(here: Side, there: Side) -> str:
    took = []
    for number, (writer, reader) in enumerate(((here, there), (there, here))):
        one, two = f"one-{number}", f"two-{number}"
        _do(writer, "make", name=one, text="old")
        _do(writer, "make", name=two, text="new")
        _do(reader, "mark", name=one)
        try:
            _do(writer, "exchange", name=one, other=two)
        except OSError as error:
            if error.errno in linux.NO_EXCHANGE:
                raise Unseen("two directories cannot change places in one step (`RENAME_EXCHANGE`)") from error
            raise
        took += [_seen(reader, "mark", name, text, "an exchange") for name, text in ((one, "new"), (two, "old"))]
    return _late(*took)


def _locks(kind: str) -> Callable[[Side, Side], str]:
    def attempt(here: Side, there: Side) -> str:
        name = f"lock-{kind}"
        for side in (here, there):
            _do(side, "hold", name=name)
        try:
            if not _do(here, "lock", name=name, kind=kind):
                raise Unseen("a free file cannot be locked")
            if _do(there, "lock", name=name, kind=kind):
                raise Unseen("both machines hold one lock at the same time")
            _do(here, "drop", name=name)
            until = time.monotonic() + UNLOCK_SECONDS
            while not _do(there, "lock", name=name, kind=kind):
                if time.monotonic() < until:
                    continue  # the system tells the file system later than it returns from `close`
                raise Unseen("a lock stays when its holder has closed the file")
        finally:
            for side in (here, there):
                try:
                    _do(side, "drop", name=name)
                except (OSError, KeyError):
                    continue
        counter = f"count-{kind}"
        _do(here, "write", name=counter, text="0")

        def count(side: Side) -> None:
            _do(side, "count", name=counter, kind=kind, rounds=ROUNDS)

        _together(partial(count, here), partial(count, there))
        found = int(_do(here, "read", name=counter))
        if found != 2 * ROUNDS:
            raise Unseen(f"of {2 * ROUNDS} steps that both machines counted under a lock, {found} are there")
        return "one holder at a time, on either machine"

    return attempt


def _unsynced(here: Side, there: Side) -> str:
    for number, (writer, reader) in enumerate(((here, there), (there, here))):
        name = f"unsynced-{number}"
        _do(writer, "write", name=name, text="before")
        _do(writer, "hold", name=name)
        try:
            _do(writer, "scribble", name=name, text="after!", kind="fcntl")
            if _do(reader, "read", name=name) != "after!":
                raise Unseen("data that is written and unlocked, but not synced, is not seen")
        finally:
            _do(writer, "drop", name=name)
    return "are seen once their file is unlocked"


def _open_files(here: Side, there: Side) -> str:
    for number, (reader, writer) in enumerate(((here, there), (there, here))):
        name = f"open-{number}"
        _do(writer, "write", name=name, text="before")
        _do(reader, "hold", name=name)
        try:
            _do(reader, "held", name=name)
            _do(writer, "patch", name=name, text="after!")
            if _do(reader, "held", name=name) != "after!":
                raise Unseen("a file that is kept open is read with old contents")
        finally:
            _do(reader, "drop", name=name)
    return "are read with the last contents"


def _exclusive(here: Side, there: Side) -> str:
    made = _together(*(lambda side=side: _do(side, "claim", name="claim", count=ROUNDS) for side in (here, there)))
    numbers = sorted(made[0] + made[1])
    if numbers != list(range(ROUNDS)):
        raise Unseen(f"of {ROUNDS} names that both made with `O_EXCL`, {len(numbers) - ROUNDS} were made twice")
    return "of two that make one name, one does"


def _durable(here: Side, there: Side) -> str:
    for number, (writer, reader) in enumerate(((here, there), (there, here))):
        _do(writer, "die", name=f"durable-{number}", text="x" * 5000)
        if _do(reader, "until", look="size", name=f"durable-{number}", value=5000) < 0:
            raise Unseen("data that was made durable is gone after its writer was killed")
        if _do(reader, "read", name=f"durable-{number}") != "x" * 5000:
            raise Unseen("data that was made durable is read wrongly after its writer was killed")
    return "synced data outlives a writer that is killed"


def _removed(here: Side, there: Side) -> str:
    for number, (reader, remover) in enumerate(((here, there), (there, here))):
        name = f"removed-{number}"
        _do(reader, "write", name=name, text="still there")
        _do(reader, "hold", name=name)
        try:
            _do(remover, "remove", name=name)
            try:
                text = _do(reader, "held", name=name)
            except OSError as error:
                raise Unseen(f"a reader of a file that the other machine removes gets `{error.strerror}`") from error
            if text != "still there":
                raise Unseen("a reader of a file that the other machine removes reads something else")
        finally:
            _do(reader, "drop", name=name)
    return "a reader keeps a file that the other machine removes"


def _appends(here: Side, there: Side) -> str:
    _do(here, "write", name="log", text="")

    def append(side: Side, text: str) -> list[str]:
        return [
            f"{text}{number:06}" for number in range(_do(side, "append", name="log", text=text, seconds=APPEND_SECONDS))
        ]

    wanted = {
        line for lines in _together(partial(append, here, "here"), partial(append, there, "there")) for line in lines
    }
    found = len(wanted & set(_do(here, "read", name="log").splitlines()))
    if found != len(wanted):
        raise Unseen(f"of {len(wanted)} lines that both machines appended to one file at a time, {found} are there")
    return "from two machines at a time, none lost"


_SEES = "a function may read what one on another machine has replaced"

CHECKS = (
    PeerCheck("same file system", True, _same, "the machines share nothing", "mount the same one on both"),
    PeerCheck("clocks", True, _clocks, "cleanups may remove what another machine works on", "run `chrony` or `ntpd` on both"),
    PeerCheck("close to open", True, _close_to_open, _SEES, _UNCACHED),
    PeerCheck("attributes", True, _attributes, f"{_SEES}, and a sync may take a changed file for unchanged", _UNCACHED),
    PeerCheck("names", True, _names, "a function may miss a file of one on another machine, or find one that is gone", _UNCACHED),
    PeerCheck("directory times", True, _directory_times, "a sync misses files that another machine has just added", _UNSKIPPED),
    PeerCheck("rename", True, _rename, _SEES, _UNCACHED),
    PeerCheck("exchange", False, _exchange, "`sync_dir` refuses to replace a directory, unless `atomic=False`", _SERVE),
    PeerCheck("`flock` locks", True, _locks("flock"), "syncs and snapshots of two machines run into each other", _SERVE),
    PeerCheck("`fcntl` locks", True, _locks("fcntl"), "SQLite databases are damaged by two writers", _SERVE),
    PeerCheck("unsynced writes", False, _unsynced, "programs lose what they unlock before they sync or close it", "sync it"),
    PeerCheck("open files", False, _open_files, "programs read old data of a file that they keep open, such as SQLite", "let one machine at a time use such files"),
    PeerCheck("exclusive creation", True, _exclusive, "two users may get one host uid", _SERVE),
    PeerCheck("durable writes", True, _durable, "a machine's death may lose synced data", _SERVE),
    PeerCheck("removed while open", False, _removed, "a function fails whose file another machine replaces", _SERVE),
    PeerCheck("appends", False, _appends, "logs that functions on two machines write lose lines", "write a log for each machine"),
)  # fmt: skip
"""In the order of the report."""


def examine(here: Side, there: Side) -> Iterator[Finding]:
    """Try every check; the first one that fails wholly, the same file system, ends the test.

    Raises:
        OSError: the other machine has gone.
    """
    for check in CHECKS:
        try:
            yield Finding(check.name, check.needed, True, check.attempt(here, there))
        except Unseen as error:
            yield Finding(check.name, check.needed, False, str(error), check.loses, check.fix)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            text = (error.strerror or str(error)).lower()
            yield Finding(check.name, check.needed, False, text, check.loses, check.fix)
        else:
            continue
        if check.attempt is _same:
            return


def conclusion(found: list[Finding]) -> str:
    """Return what the findings mean for syncs, in one line."""
    works = {one.name: one.works for one in found}
    if not all(one.works for one in found if one.needed):
        return "do not share `/data` on this file system: something that it needs does not work"
    if not works.get("exchange"):
        return "syncs that replace a directory are refused, or with `atomic=False` take two steps"
    return "syncs replace a directory in one step, seen whole on every machine"
