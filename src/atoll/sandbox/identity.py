"""Host uids of the platform's users.

A daemon of a plain user confines everything as that user. A daemon of root gives each user a host uid of its own,
for good, from a range that belongs to nobody else: the first of the range builds environments, the others are
assigned in the order in which users appear and are kept in `ATOLL_HOME/identities.json`. Where machines share the volumes,
users have the same uid on all of them (`shared_uids`), and each machine takes those that own nothing on a volume (names
with `@`) from the end of its range.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from atoll.errors import SandboxUnavailable, StateUnusable
from atoll.model.mounts import OWNER, Identity
from atoll.sandbox.shared_uids import SharedUids
from atoll.settings import Settings

PREFERRED_UID = 1_879_100_000
"""Above systemd's ranges for containers and homes ("1879048192 to 2147483647: unused" in its table of uids)."""
RANGE_COUNT = 65536
_LOWEST_UID = 1000
_NOBODY = range(65534, 65536)


class Identities:
    """Assign host ids to users; several processes may do so at the same time.

    Raises:
        SandboxUnavailable: root has no range of host uids here, or it does not hold that which the user has on other
            machines (from `user` and `builder`).
        VolumesUnavailable: the shared file system does not tell the user's uid (from `user`).
        StateUnusable: the file of assignments cannot be read or written (from `user`).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shared = SharedUids(settings.storage.root(settings.home)) if settings.storage.is_shared else None
        self._path = settings.home / ("identities.json" if self._shared is None else "identities-of-machine.json")
        self._known: dict[str, int] = {}
        self._span: range | None = None

    def builder(self, user: str = "") -> Identity:
        """Return the identity that builds environments, of the machine's owner or of a user of a server."""
        if user:
            return self.user(f"@builder of {user}")
        if os.geteuid() != 0:
            return Identity(os.getuid(), os.getgid())
        span = self._range()
        return _identity(next(uid for uid in span if not _exists(uid)))

    def carrier(self) -> Identity:
        """Return who serves outbound networks; as root, nobody who runs functions or builds (see `network`)."""
        return self._of("@network", served=False)

    def user(self, name: str) -> Identity:
        """Return who runs the functions of the user `name`; the same at every call, also after a restart."""
        return self._of(name, served=name != OWNER)

    def _of(self, name: str, *, served: bool) -> Identity:
        if os.geteuid() != 0:
            return Identity(os.getuid(), os.getgid(), served=served)
        if name not in self._known:
            self._known[name] = self._assign(name)
        return Identity(self._known[name], self._known[name], served=served)

    def _range(self) -> range:
        if self._span is None:
            options = self._settings.sandbox
            self._span = find_range(
                configured=(options.first_uid, options.uid_count),
                mapped=_read_map("/proc/self/uid_map", "/proc/self/gid_map"),
                subordinate=_read_subordinate(),
            )
        return self._span

    def _assign(self, name: str) -> int:
        if self._shared is not None and not name.startswith("@"):
            return self._assign_shared(self._shared, name)
        with _locked(self._path.with_name("identities.lock")):
            assigned = self._read()
            span = self._range()
            if assigned.get(name) in span:
                return assigned[name]
            taken = set(assigned.values()) | {self.builder().uid}
            order = span if self._shared is None else reversed(span)
            uid = next((uid for uid in order if uid not in taken and not _exists(uid)), None)
            if uid is None:
                raise _exhausted(span)
            self._write(assigned | {name: uid})
            return uid

    def _assign_shared(self, shared: SharedUids, name: str) -> int:
        """Return a user's uid on all machines, after a check that it is free for functions on this one."""
        span, own = self._range(), {*self._read().values(), self.builder().uid}
        uid = shared.assign(name, (uid for uid in span if uid not in own and not _exists(uid)))
        if uid is None:
            raise _exhausted(span)
        if uid not in span or uid in own or _exists(uid):
            reason = "is not in this one's range" if uid not in span else "belongs to somebody else on this one"
            raise SandboxUnavailable(
                f"the user `{name}` has the host uid {uid} on the machines that share `/data`, which {reason}: "
                f"{span.start} to {span.stop - 1}",
                hint="give the same `sandbox.first_uid` and `sandbox.uid_count` in `settings.toml` of all machines, a "
                "range without accounts",
            )
        return uid

    def _read(self) -> dict[str, int]:
        try:
            data = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StateUnusable(f"cannot read `{self._path}`: {error}", hint="restore the file") from error
        if not isinstance(data, dict) or not all(type(uid) is int for uid in data.values()):
            raise StateUnusable(f"`{self._path}` does not map users to uids", hint="restore the file")
        return data

    def _write(self, assigned: dict[str, int]) -> None:
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".identities-")
            with os.fdopen(descriptor, "w") as file:
                json.dump(assigned, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            raise StateUnusable(f"cannot write `{self._path}`: {error}", hint="mend the directory") from error


def find_range(
    *, configured: tuple[int, int], mapped: Iterable[range], subordinate: Iterable[tuple[str, range]]
) -> range:
    """Return the host uids that functions may have; the same numbers serve as gids.

    Args:
        configured: first uid and count of the settings; zeros for none.
        mapped: the uids that exist in this process's user namespace.
        subordinate: the owners and ranges of `/etc/subuid`.

    Raises:
        SandboxUnavailable: the configured range is not usable, or none can be found.
    """
    mapped = list(mapped)
    subordinate = list(subordinate)

    def usable(span: range) -> bool:
        return len(span) > 0 and any(span.start >= one.start and span.stop <= one.stop for one in mapped)

    first, count = configured
    if first:
        span = range(first, first + (count or RANGE_COUNT))
        if not usable(span) or first < _LOWEST_UID:
            raise SandboxUnavailable(
                f"the configured uids {span.start} to {span.stop - 1} are not mapped here",
                hint="see `/proc/self/uid_map`; change `sandbox.first_uid` in `settings.toml`",
            )
        return span
    own = [span for owner, span in subordinate if owner in ("root", "0")]
    others = [span for owner, span in subordinate if owner not in ("root", "0")]
    candidates = [*own, range(PREFERRED_UID, PREFERRED_UID + RANGE_COUNT)]
    candidates += [range(40_000, 60_000), range(20_000, 30_000)]  # in a container that maps 65,536 uids
    candidates += [range(max(span.start, _LOWEST_UID), min(span.stop, 65_534)) for span in mapped]
    for span in candidates:
        if usable(span) and len(span) > 1 and not any(_overlap(span, other) for other in others):
            return span
    raise SandboxUnavailable(
        "root has no range of host uids for functions here",
        hint="add `root:1879100000:65536` to `/etc/subuid`, or run Atoll as a plain user",
    )


def _exhausted(span: range) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"all {len(span)} host uids of {span.start} to {span.stop - 1} belong to users already",
        hint="give a larger `sandbox.uid_count` in `settings.toml`",
    )


def give(path: Path, identity: Identity, mode: int) -> None:
    """Make `path` belong to an identity, with the given mode; only root changes owners.

    Raises:
        OSError: the path does not exist or belongs to somebody else.
    """
    if os.geteuid() == 0:
        os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
    os.chmod(path, mode)


def _identity(uid: int) -> Identity:
    return Identity(uid, uid)


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _exists(uid: int) -> bool:
    import grp
    import pwd

    if uid in _NOBODY:
        return True
    for find in (pwd.getpwuid, grp.getgrgid):
        with contextlib.suppress(KeyError):
            find(uid)
            return True
    return False


def _read_map(*paths: str) -> list[range]:
    """Return the ids that all of the maps have."""
    found: list[range] | None = None
    for path in paths:
        try:
            rows = [[int(word) for word in line.split()] for line in Path(path).read_text().splitlines()]
        except (OSError, ValueError):
            return []
        spans = [range(inside, inside + count) for inside, _outside, count in rows]
        if found is None:
            found = spans
        else:
            cuts = [range(max(a.start, b.start), min(a.stop, b.stop)) for a in found for b in spans]
            found = [cut for cut in cuts if cut]
    return found or []


def _read_subordinate() -> list[tuple[str, range]]:
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            owner, first, count = line.split(":")
            found.append((owner, range(int(first), int(first) + int(count))))
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnusable(f"cannot write `{path}`: {error}", hint="mend the directory") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
