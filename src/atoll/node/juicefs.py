"""`juicefs clone` for storage peers, whose sandboxes have neither the program nor the mount's control file.

A peer asks over a channel of its own to have the whole of a volume, or one of its snapshots, cloned to a place in
staging. Only such names are taken, and no part of a path can be changed by functions, so that a clone can run with the
daemon's rights: the file system keeps owners and modes, and copies no content.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from pathlib import Path

from atoll import linux, process
from atoll.wire.async_channel import AsyncChannel
from atoll.wire.channel import ChannelClosed
from atoll.wire.frames import FrameError

log = logging.getLogger("atoll.juicefs")

_SOURCE = re.compile(r"data|snapshots/trees/(?!\.)[A-Za-z0-9._-]{1,200}")
_STAGE = re.compile(r"(snapshot|restore)-[0-9a-f]{16}")


def find(volume: Path) -> str | None:
    """Return the path of `juicefs` where the volume is on JuiceFS and the program is here, else None."""
    if linux.kind_of(str(volume)) != "fuse.juicefs":
        return None
    beside = Path(sys.executable).with_name("juicefs")
    return str(beside) if beside.exists() else shutil.which("juicefs")


async def serve(channel: AsyncChannel, volume: Path, program: str) -> None:
    """Clone what a peer asks for, until it goes."""
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
