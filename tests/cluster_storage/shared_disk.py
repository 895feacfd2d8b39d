"""JuiceFS on this machine (SQLite and files), its mounts as if of several machines, and state directories on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atoll import linux
from atoll.model.options.storage import StorageSettings
from atoll.node.shared import juicefs
from atoll.node.shared.keeper import clear

from .. import library
from ..conftest import Home
from ..waiting import until

UNCACHED = juicefs._UNCACHED
CACHED = ("--attr-cache", "5", "--entry-cache", "5", "--dir-entry-cache", "5")


def why_not() -> str:
    """Return why nothing can be mounted here; empty where it can."""
    if os.geteuid() != 0:
        return "a plain user mounts nothing for the uids of functions"
    if not Path(sys.executable).with_name("juicefs").exists() and shutil.which("juicefs") is None:
        return "the program `juicefs` is not here"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"`/dev/fuse`: {error.strerror}"
    return ""


@dataclass(frozen=True)
class Disk:
    """A JuiceFS with metadata in SQLite and contents in files.

    Args:
        path: the directory with all of it.
    """

    path: Path

    @property
    def metadata(self) -> str:
        return f"sqlite3://{self.path}/meta.db"

    @property
    def settings(self) -> str:
        """The group `storage` of a state directory on it."""
        return (
            f'[storage]\nfilesystem = "juicefs"\nmetadata = "{self.metadata}"\nbucket = "{self.path}/objects"\n'
            "cache_bytes = 0\n"
        )

    def options(self) -> StorageSettings:
        return StorageSettings("juicefs", "", self.metadata, "file", f"{self.path}/objects", cache_bytes=0)

    @contextlib.contextmanager
    def mounted(self, *options: str) -> Iterator[Path]:
        """Mount it once more, with options in place of those without caches; gives the mount point."""
        with mounted(self.metadata, *(options or UNCACHED)) as point:
            yield point


@contextlib.contextmanager
def made(*options: str) -> Iterator[Disk]:
    """Make a JuiceFS, by the program itself; gone at the end."""
    path = Path(tempfile.mkdtemp(prefix="atoll-disk-", dir="/tmp"))
    try:
        disk = Disk(path)
        line = juicefs.format_command(disk.options())
        subprocess.run([*line[:2], *options, *line[2:]] if options else line, check=True, capture_output=True)
        yield disk
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def mounted(metadata: str, *options: str) -> Iterator[Path]:
    """Mount a JuiceFS while the context is open; gives the mount point."""
    point = Path(tempfile.mkdtemp(prefix="atoll-mount-", dir="/tmp"))
    line = juicefs.mount_command(StorageSettings("juicefs", "", metadata, cache_bytes=0), point, point)
    first = line.index(UNCACHED[0])
    line[first : first + len(UNCACHED)] = options
    program = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: linux.kind_of(str(point)) == juicefs.KIND)
        yield point
    finally:
        clear(point)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        point.rmdir()


class Machine(Home):
    """The state directory of a machine. All processes see its mount: its own are known by their command lines."""

    def processes(self) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if str(self.path).encode() in Path("/proc", name, "cmdline").read_bytes():
                    found.append(int(name))
        return [pid for pid in found if pid != os.getpid()]

    @property
    def root(self) -> Path:
        """The mount point, while its daemon lives."""
        return self.path / "shared"


@contextlib.contextmanager
def machine(disk: Disk, options: str = "") -> Iterator[Machine]:
    """Make a state directory on a disk, or with other settings; its daemon, keeper and mount are gone at the end."""
    home = Machine(Path(tempfile.mkdtemp(prefix="atoll-machine-", dir="/tmp")))
    library.put(home.path)
    (home.path / "settings.toml").write_text(options or disk.settings)
    try:
        yield home
        home.stop()
        left = home.wait_processes()
        assert not left, f"processes outlived the daemon: {left}"
        assert not linux.kind_of(str(home.root)).startswith("fuse"), "the mount outlived the daemon"
        log = home.path / "logs" / "daemon.log"
        assert not log.exists() or "Traceback" not in log.read_text(), log.read_text()[-5000:]
    finally:
        for pid in home.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        clear(home.root)
        shutil.rmtree(home.path)
