"""Storage peers of the users' volumes: started in sandboxes, helped to switch and clone trees, asked to remove replaced
ones.

On JuiceFS a peer's sandbox has neither the program `juicefs` nor the mount's control file. The peer asks over a channel
of its own to have the whole of a volume, or one of its snapshots, cloned into staging. Only such names are accepted,
and functions can change no part of these paths, so a clone can run with the daemon's rights: the file system keeps
owners and modes, and copies no content.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from atoll import errors, linux, process
from atoll.environments.built.interpreter import Interpreter, probe
from atoll.model.mounts import Bind, Identity
from atoll.node import mounted_files
from atoll.node.freezing import Pauses
from atoll.node.mounted_files import LIBRARY, NATIVE
from atoll.node.stderr_log import logged_stderr
from atoll.process import Group
from atoll.sandbox.launch import Launcher, Sandbox
from atoll.sandbox.machine import new_hostname
from atoll.sandbox.policy import confine
from atoll.settings import Settings
from atoll.storage.protocol.replies import DAEMON
from atoll.storage.sync.cleanup import worth_collecting
from atoll.storage.volume.removal import nearly_full
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.bounds import PEER
from atoll.wire.channel import Channel, ChannelClosed, Socket, pair
from atoll.wire.frames import FrameError
from atoll.work_threads import WorkThreads

log = logging.getLogger("atoll.storage_peers")

_CODE = (
    f"import sys; sys.path[:0] = [{LIBRARY!r}]; sys.path.append({NATIVE!r}); "
    "from atoll.storage.peer.main import main; sys.exit(main())"
)
_SOURCE = re.compile(r"data|snapshots/trees/(?!\.)[A-Za-z0-9._-]{1,200}")
_STAGE = re.compile(r"(snapshot|restore)-[0-9a-f]{16}")


class StoragePeers:
    """The storage peers of one machine; to be used from the event loop's own thread.

    Args:
        settings: names the directories of volumes, logs and mounted files.
        launcher: starts the sandboxes.
        volume: returns the directory of a user's volume and its owner, prepared.
        library: the directory to mount at `LIBRARY`, held by the caller.
        pauses: of the users' sandboxes.
        group: returns where the peers of a user begin their lives; None for no place of their own.
        quota_sheet: returns the descriptor of the file with a user's quota, which stays open.
    """

    def __init__(
        self,
        settings: Settings,
        launcher: Launcher,
        volume: Callable[[str], tuple[Path, Identity]],
        library: Path,
        pauses: Pauses,
        quota_sheet: Callable[[str], int],
        group: Callable[[str], Group | None],
    ) -> None:
        self._group = group
        self._settings = settings
        self._launcher = launcher
        self._volume = volume
        self._library = library
        self._native: tuple[Path, int] | None = None
        self._interpreter: Interpreter | None = None
        self._pauses = pauses
        self._quota_sheet = quota_sheet
        self._helpers: set[asyncio.Task[None]] = set()
        self._threads = WorkThreads("collection", 2)
        self._open: set[Sandbox] = set()

    def close(self) -> None:
        """Release the compiled packages; all peers have ended."""
        if self._native is not None:
            os.close(self._native[1])

    @contextlib.asynccontextmanager
    async def open(self, user: str, ended: asyncio.Event | None = None, *, client: str) -> AsyncIterator[int]:
        """Run a storage peer for a user's volume; gives the descriptor of the client's end, closed at the end.

        Args:
            client: the kind of the peer's client: `DAEMON`, `PROGRAM`, `FUNCTION` or `REMOTE` of `storage.protocol.replies`.
            ended: is set when the peer has ended by itself.
        """
        ours, theirs = pair()
        try:
            sandbox = await self._start(user, theirs, client)
            self._open.add(sandbox)
            watch = asyncio.ensure_future(_set_at_end(sandbox, ended)) if ended is not None else None
            try:
                yield ours.fileno()
            finally:
                if watch is not None:
                    watch.cancel()
                self._open.discard(sandbox)
                await sandbox.kill()
        finally:
            ours.close()

    async def end_all(self) -> None:
        """End all peers: their clients ask for others."""
        await asyncio.gather(*(sandbox.kill() for sandbox in list(self._open)))

    async def _start(self, user: str, end: Socket, client: str) -> Sandbox:
        volume, identity = await asyncio.to_thread(self._volume, user)  # a shared file system may not answer
        if self._interpreter is None:
            self._interpreter = await probe(getattr(sys, "_base_executable", None) or sys.executable)
        if self._native is None:
            with contextlib.suppress(OSError):  # a peer does without the compiled packages
                self._native = await asyncio.to_thread(
                    mounted_files.hold, self._settings.agents_directory, mounted_files.prepare_native
                )
        binds = [
            Bind(str(self._library), LIBRARY),
            *self._interpreter.binds,
            Bind(str(volume), "/volume", writable=True),
            *([Bind(str(self._native[0]), NATIVE)] if self._native is not None else []),
        ]
        ours, freezer = pair()
        self._help(self._pauses.serve(user, AsyncChannel(ours, PEER)))
        sheet = self._quota_sheet(user)
        command = [self._interpreter.executable, "-I", "-S", "-c", _CODE, f"--quota={sheet}"]
        command += [str(end.fileno()), client, "/volume", str(freezer.fileno())]
        ends = [end, freezer]
        if (program := find_juicefs(volume)) is not None:
            ours, theirs = pair()
            ends.append(theirs)
            command.append(str(theirs.fileno()))
            self._help(_clone(AsyncChannel(ours, PEER), volume, program))
        policy = confine(
            command,
            machine=self._launcher.machine,
            identity=identity,
            binds=binds,
            environment=(("PYTHONDONTWRITEBYTECODE", "1"),),
            network="none",
            tmp_bytes=self._settings.sandbox.tmp_bytes,
            shm_bytes=self._settings.sandbox.shm_bytes,
            hostname=new_hostname(),
            own_pids=True,
        )
        try:
            with logged_stderr(self._settings.logs_directory / "storage.log") as stderr:
                return self._launcher.launch(
                    policy,
                    descriptors=[sheet, *(one.fileno() for one in ends)],
                    stderr=stderr,
                    group=self._group(user),
                )
        finally:
            for one in ends:
                one.close()

    def _help(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._helpers.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._helpers.discard)

    def used_by_others(self) -> bool:
        """Return whether a daemon of another version still drains, with sandboxes that this one does not know.

        Raises:
            OSError: the state directory cannot be read.
        """
        return mounted_files.used_by_others(self._library)

    async def collect(self, user: str, before_ns: int) -> int:
        """Remove, slowly, the trees that syncs have replaced before a moment; a cancelled one goes on the next time.

        Args:
            before_ns: nanoseconds since the epoch; no living sandbox of the user was started earlier.

        Returns:
            how many replaced trees were removed.
        """
        staging = self._settings.volumes_directory / user / "staging"
        with contextlib.suppress(errors.AtollError, OSError):
            worth = partial(worth_collecting, staging, before_ns)
            if self.used_by_others() or not await self._threads.run(user, worth):
                return 0
            async with self.open(user, client=DAEMON) as descriptor:
                channel = Channel(socket.socket(fileno=os.dup(descriptor)), 0)
                try:
                    return await self._threads.run(user, partial(_collect, channel, before_ns))
                finally:
                    with contextlib.suppress(OSError):
                        channel.socket.shutdown(socket.SHUT_RDWR)  # ends the thread's wait after a cancellation
                    channel.close()
        return 0

    def is_disk_nearly_full(self) -> bool:
        """Return whether the volumes' disk is so full that free space matters more than pace."""
        with contextlib.suppress(OSError):
            return nearly_full(os.statvfs(self._settings.volumes_directory))
        return False


async def _set_at_end(sandbox: Sandbox, ended: asyncio.Event) -> None:
    await sandbox.wait()
    ended.set()


def _collect(channel: Channel, before_ns: int) -> int:
    with contextlib.suppress(ChannelClosed, OSError):
        channel.send({"type": "collect", "before_ns": before_ns, "slowly": True})
        return int(channel.receive().header.get("removed", 0))
    return 0


def find_juicefs(volume: Path) -> str | None:
    """Return the path of `juicefs` where the volume is on JuiceFS and the program is here, else None."""
    if linux.kind_of(str(volume)) != "fuse.juicefs":
        return None
    beside = Path(sys.executable).with_name("juicefs")
    return str(beside) if beside.exists() else shutil.which("juicefs")


async def _clone(channel: AsyncChannel, volume: Path, program: str) -> None:
    """Serve a peer's requests for clones until it closes the channel."""
    try:
        while True:
            message = (await channel.receive()).header
            source, stage = str(message.get("source")), str(message.get("stage"))
            if not _SOURCE.fullmatch(source) or not _STAGE.fullmatch(stage):
                raise ValueError("a peer asked for a clone of something else")
            target = volume / "staging" / stage
            env = {"PATH": os.defpath, "HOME": "/nonexistent"}
            done = await process.run([program, "clone", "-p", str(volume / source), str(target)], env=env)
            if done.status != 0:
                log.warning("clone_failed status=%s output=%s", done.status, done.output[-500:])
            await channel.send({"type": "done" if done.status == 0 else "failed"})
    except (ChannelClosed, FrameError, ValueError, OSError) as error:
        if not isinstance(error, ChannelClosed):
            log.warning("cloner_ended error=%s", error)
    finally:
        channel.close()
