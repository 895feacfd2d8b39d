"""Downloads on a volume: once for all who ask, resumed, verified, and there whole or not at all.

Theory of operation. Each place that a download may have (a path below `/data`) has a note, a file named by the
place's digest in `/data/.cache/atoll/downloads/.notes`, and beside it what has arrived so far. Who works on the place
holds the note's `flock`; the others wait for it and then find what they came for. The kernel gives the lock away when
its holder dies, however it dies: the next one reads in the note what has arrived, asks for the rest with `Range` and
`If-Range`, and goes on. When everything is there and verified, it is made durable and renamed to its place.

The note remembers the digest of what was downloaded with the size, times and inode that the file had. While these are
the same, the file is good without a look inside and without a network; where they moved it is read, and good if its
digest is the same. A note may be lost at any time: then a file that stands at the place is verified where a digest is
given, and is taken as it is otherwise.

A part is continued only as far as it must be on the disk: all of it in the same boot of the machine, up to the last
`fdatasync` in a later one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from atoll import linux
from atoll.errors import AtollError, ChecksumMismatch, DiskFull, DownloadError, QuotaExceeded, StateUnusable, from_data
from atoll.file_stamp import stamp_of
from atoll.storage.downloads.http import Content, Origin, Transient, Validators, shut_in
from atoll.storage.downloads.note import (
    PIECE_BYTES,
    Hashes,
    Note,
    boot,
    digests_of,
    hold_note,
    make_directories,
)
from atoll.storage.files.tree import printable

_ATTEMPTS = 6
"""How often it is tried without a byte gained."""
_LONGEST_PAUSE_SECONDS = 30.0
_CHECKPOINT_BYTES = 64 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Wanted:
    """What is to be there.

    Args:
        path: the place, relative to the volume's root.
        digests: hexadecimal digests by algorithm that the content must have.
        force: whether to download also what is there.
        max_bytes: the most that it may have.
    """

    path: str
    digests: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    max_bytes: int | None = None


@dataclass(frozen=True)
class Kept:
    """A file that is there.

    Args:
        path: relative to the volume's root.
        size: bytes.
        digests: what is known of its digests, hexadecimal by algorithm.
    """

    path: str
    size: int
    digests: Mapping[str, str]


class Shelf:
    """Download to a volume.

    Args:
        root: the volume's directory.
        progress: is told how many bytes there are of how many (-1: unknown), now and then.
        pause: waits some seconds.
    """

    def __init__(
        self,
        root: str = "/data",
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root = root
        self._progress = progress
        self._pause = pause

    def get(self, origin: Origin, wanted: Wanted) -> Kept:
        """Have the file there; see `sdk.download.download`.

        Raises:
            DownloadError, ChecksumMismatch: it cannot be downloaded; what stood there is as it was.
            DiskFull, QuotaExceeded, StateUnusable: the volume cannot take it.
        """
        began = time.time()
        try:
            with hold_note(self._root, wanted.path) as note:
                return _Download(self, origin, wanted, note, began).run()
        except AtollError:
            raise
        except OSError as error:
            raise _translated(error, wanted.path) from error

    def find(self, wanted: Wanted, url: str) -> Kept | None:
        """Return what `get` would return without a download, if anything."""
        with hold_note(self._root, wanted.path) as note:
            return _Download(self, Origin(url), wanted, note, 0.0).standing()


class _Download:
    """One request, which holds the note's lock."""

    def __init__(self, shelf: Shelf, origin: Origin, wanted: Wanted, note: Note, began: float) -> None:
        self._root = shelf._root
        self._progress = shelf._progress
        self._pause = shelf._pause
        self._origin = origin
        self._wanted = wanted
        self._note = note
        self._began = began
        self._target = f"{shelf._root}/{wanted.path}"
        self._source = hashlib.sha256(origin.address.encode("utf-8", "surrogatepass")).hexdigest()
        self._request = json.dumps([self._source, sorted(wanted.digests.items()), wanted.max_bytes, shut_in()])
        self._hashes = Hashes({"sha256", *wanted.digests})

    def run(self) -> Kept:
        note = self._note
        found = self.standing()
        if found is not None:
            return found
        failed = note.failed
        if failed and failed["at"] >= self._began and failed["request"] == self._request:
            raise from_data(failed["error"])  # of one who asked for the same while we waited for the lock
        started = time.time()
        try:
            digests = self._transfer()
        except DownloadError as error:
            if not self._origin.private:
                note.failed = {"at": time.time(), "request": self._request, "error": error.to_data()}
                note.save()
            raise
        note.failed = {}
        return self._publish(digests, started)

    # --- what is there ----------------------------------------------------------------------------------------------

    def standing(self) -> Kept | None:
        """Return the file that is there already, if it will do."""
        wanted, kept = self._wanted, self._note.kept
        try:
            info = os.stat(self._target)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not os.path.isfile(self._target):
            raise DownloadError(
                f"`/data/{printable(wanted.path)}` is not an ordinary file", hint="name another path, or remove it"
            )
        if wanted.force and kept.get("began", 0.0) < self._began:
            return None
        known = kept.get("digests", {})
        if kept and kept["source"] != self._source and not wanted.digests:
            return None
        if not kept and not wanted.digests:
            return Kept(wanted.path, info.st_size, {})
        same = bool(kept) and kept["stamp"] == list(stamp_of(info))
        if not same or not wanted.digests.keys() <= known.keys():
            if kept and not wanted.digests and info.st_size != kept["stamp"][0]:
                return None
            known = digests_of(self._target, {"sha256", *wanted.digests})
            if kept and not wanted.digests and known["sha256"] != kept["digests"]["sha256"]:
                return None
        if any(known[name] != digest for name, digest in wanted.digests.items()):
            return None
        if not same or known != kept.get("digests"):
            self._note.kept = {
                "source": self._source if wanted.digests else kept["source"],
                "stamp": list(stamp_of(info)),
                "digests": known,
                "began": kept.get("began", 0.0),
            }
            self._note.save()
        return Kept(wanted.path, info.st_size, known)

    # --- what comes -------------------------------------------------------------------------------------------------

    def _transfer(self) -> dict[str, str]:
        """Fill the part; return its digests."""
        part = os.open(self._note.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            resumed = self._begin(part)
            while True:
                self._fill(part)
                digests = self._hashes.digests()
                wrong = [name for name, digest in self._wanted.digests.items() if digests[name] != digest]
                if not wrong:
                    break
                self._drop(part)
                if not resumed:
                    expected = self._wanted.digests[wrong[0]]
                    raise mismatch(self._origin.shown, wrong[0], expected, digests[wrong[0]])
                resumed = False  # the beginning was of another time: once more, all of it
            os.fchmod(part, 0o644)
            os.fsync(part)
            return digests
        except OSError as error:
            if not isinstance(error, AtollError) and error.errno in _FULL:
                self._drop(part)
            raise
        finally:
            os.close(part)

    def _begin(self, part: int) -> bool:
        """Keep of the part what can be relied on; return whether that is anything."""
        found = self._note.partial
        usable = 0
        if found.get("source") == self._source:
            size = os.fstat(part).st_size
            usable = size if found["boot"] == boot() else min(size, found["durable"])
        os.ftruncate(part, usable)
        if not usable:
            self._note.partial = {}
        return usable > 0

    def _drop(self, part: int) -> None:
        os.ftruncate(part, 0)
        self._note.partial = {}
        self._note.save()

    def _fill(self, part: int) -> None:
        """Receive until everything is there, through as many connections as that takes."""
        failures = 0
        while True:
            before = os.fstat(part).st_size
            try:
                self._receive(part, before)
                return
            except Transient as error:
                if error.anew:
                    self._drop(part)
                failures = 0 if os.fstat(part).st_size > before else failures + 1
                if failures >= _ATTEMPTS:
                    received = os.fstat(part).st_size
                    raise DownloadError(
                        f"cannot download `{self._origin.shown}`: {error.reason}, {failures} times",
                        hint="try again later" + ("; what has arrived is kept" if received else ""),
                        received=received,
                        status=error.status,
                    ) from error
                backoff = min(0.25 * 2**failures, _LONGEST_PAUSE_SECONDS) * random.uniform(0.5, 1.0)  # noqa: S311
                self._pause(max(error.wait_seconds, backoff))

    def _receive(self, part: int, have: int) -> None:
        """Receive through one connection."""
        content = self._origin.open(have, Validators(**self._note.partial.get("validators", {})))
        with contextlib.closing(content):
            if content.offset == 0 and have:
                os.ftruncate(part, 0)
                have = 0
            total = content.validators.total
            self._check_size(total, have)
            self._remember(content, have)
            self._hashes.reach(part, have)
            self._progress(have, total)
            os.lseek(part, have, os.SEEK_SET)
            checkpoint = have
            while not content.complete and (piece := content.read(PIECE_BYTES)):
                self._check_size(have + len(piece), have)
                if os.fstat(part).st_size != have:  # somebody else is at it: locks do not hold here
                    raise Transient("what has arrived was changed meanwhile", anew=True)
                linux.write_all(part, piece)
                self._hashes.update(piece)
                have += len(piece)
                self._progress(have, total)
                if have - checkpoint >= _CHECKPOINT_BYTES:
                    os.fdatasync(part)
                    self._remember(content, have)
                    checkpoint = have
            if total >= 0 and have != total:
                raise Transient("the connection ended early" if have < total else "more came than was announced")

    def _remember(self, content: Content, durable: int) -> None:
        self._note.partial = {
            "source": self._source,
            "validators": asdict(content.validators),
            "durable": durable,
            "boot": boot(),
        }
        self._note.save()

    def _check_size(self, total: int, have: int) -> None:
        most = self._wanted.max_bytes
        if most is not None and total > most:
            raise DownloadError(
                f"`{self._origin.shown}` has {total} bytes or more, and {most} are allowed", hint="allow more"
            )
        if total - have > PIECE_BYTES:
            status = os.statvfs(self._root)
            free = status.f_bavail * status.f_frsize
            if total - have > free:
                raise DiskFull(
                    f"cannot download `{self._origin.shown}`: {total - have} bytes are to come, and the volume's disk "
                    f"has {free} free",
                    hint="free some space there and try again",
                )

    def _publish(self, digests: dict[str, str], began: float) -> Kept:
        made = make_directories(os.path.dirname(self._target))
        os.rename(self._note.part, self._target)
        for directory in made:
            linux.sync_directory(directory)
        info = os.stat(self._target)
        self._note.partial = {}
        self._note.kept = {"source": self._source, "stamp": list(stamp_of(info)), "digests": digests, "began": began}
        self._note.save()
        return Kept(self._wanted.path, info.st_size, digests)


def mismatch(shown: str, name: str, expected: str, found: str) -> ChecksumMismatch:
    """Return the error for content that has another digest than it must have."""
    return ChecksumMismatch(
        f"`{shown}` has the {name} digest `{found}`, and `{expected}` was asked for",
        hint="check the address and the digest; what arrived was thrown away",
        expected=expected,
        found=found,
    )


def _translated(error: OSError, path: str) -> AtollError:
    where, text = f"`/data/{printable(path)}`", (error.strerror or str(error)).lower()
    if error.errno == errno.ENOSPC:
        return DiskFull(f"cannot write {where}: the volume's disk is full", hint="free some space and try again")
    if error.errno == errno.EDQUOT:
        return QuotaExceeded(f"cannot write {where}: the volume's quota is used up", hint="remove something from it")
    if error.errno in (errno.EROFS, errno.EIO):
        return StateUnusable(f"cannot write {where}: {text}", hint="check that the volume's disk is sound")
    return DownloadError(f"cannot write {where}: {text}", hint="name another path, or mend what stands in the way")
