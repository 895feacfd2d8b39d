"""Downloads to a volume: once for all callers, resumed, verified, complete or absent.

Theory of operation. Each target path below `/data` has a note, a file in `/data/.cache/atoll/downloads/.notes` named
by the path's digest, and beside it the part: the content received so far. A process that downloads holds the note's
`flock`; others wait for the lock and then find the file. The kernel releases the lock when its holder dies. The next
holder reads the note, asks for the rest with `Range` and `If-Range`, and continues. A complete and verified part is
made durable and renamed to the target path.

The note keeps the digest of the content with the file's stamp. While the stamp is the same, the file is good, without
a network and without reading it. After a change of the stamp the file is read, and good if its digest is the same. A
note may be lost at any time: then an existing file is verified if the caller gives a digest, and accepted otherwise.

A part is continued only as far as the disk certainly has it: all of it in the same boot of the machine, up to the
last `fdatasync` in a later boot.
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
from atoll.terminal_text import printable

_ATTEMPTS = 6
"""Attempts in a row without a byte received."""
_LONGEST_PAUSE_SECONDS = 30.0
_CHECKPOINT_BYTES = 64 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Request:
    """A file to download.

    Args:
        path: target path, relative to the volume's root.
        digests: hexadecimal digests by algorithm that the content must have.
        force: download even if the file exists.
        max_bytes: largest size in bytes; None for no limit.
    """

    path: str
    digests: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    max_bytes: int | None = None


@dataclass(frozen=True)
class Kept:
    """A downloaded file.

    Args:
        path: relative to the volume's root.
        size: bytes.
        digests: known digests, hexadecimal by algorithm.
    """

    path: str
    size: int
    digests: Mapping[str, str]


class Downloads:
    """The downloads of one volume.

    Args:
        root: the volume's directory.
        progress: called with received and total bytes (-1: unknown).
        pause: waits a number of seconds.
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

    def get(self, origin: Origin, wanted: Request) -> Kept:
        """Download a file unless it exists; see `sdk.data.download.download`.

        Raises:
            DownloadError, ChecksumMismatch: it cannot be downloaded; an existing file is unchanged.
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

    def find(self, wanted: Request, url: str) -> Kept | None:
        """Return the result of `get` if that needs no download."""
        with hold_note(self._root, wanted.path) as note:
            return _Download(self, Origin(url), wanted, note, 0.0).existing()


class _Download:
    """One request, which holds the note's lock."""

    def __init__(self, downloads: Downloads, origin: Origin, wanted: Request, note: Note, began: float) -> None:
        self._root = downloads._root
        self._progress = downloads._progress
        self._pause = downloads._pause
        self._origin = origin
        self._wanted = wanted
        self._note = note
        self._began = began
        self._target = f"{downloads._root}/{wanted.path}"
        self._source = hashlib.sha256(origin.address.encode("utf-8", "surrogatepass")).hexdigest()
        self._request = json.dumps([self._source, sorted(wanted.digests.items()), wanted.max_bytes, shut_in()])
        self._hashes = Hashes({"sha256", *wanted.digests})

    def run(self) -> Kept:
        note = self._note
        found = self.existing()
        if found is not None:
            return found
        failed = note.failed
        if failed and failed["at"] >= self._began and failed["request"] == self._request:
            raise from_data(failed["error"])  # another process asked for the same and failed while this one waited
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

    # --- the existing file ----------------------------------------------------------------------------------------------

    def existing(self) -> Kept | None:
        """Return the existing file if it satisfies the request."""
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

    # --- receiving -------------------------------------------------------------------------------------------------

    def _transfer(self) -> dict[str, str]:
        """Receive the whole part; return its digests."""
        part = os.open(self._note.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
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
                resumed = False  # the kept part was of another version: once more, from the start
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
        """Cut the part to the bytes that are certainly on disk; return True if there are any."""
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
        """Receive the rest, over as many connections as needed."""
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
        """Receive over one connection."""
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
                if (
                    os.fstat(part).st_size != have
                ):  # another process writes to it: locks do not work on this file system
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
    """Return the error for content with a wrong digest."""
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
