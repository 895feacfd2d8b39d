"""What the client remembers of a sync, below its own `ATOLL_HOME`: the stamps of the local files.

Size and modification time of a local file can be put back after its content has changed; its change time and inode
cannot. Where they differ from those at the last successful sync, the content travels again. The index may be lost
or removed at any time: then size and modification time decide, as they do for rsync.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path

from atoll.storage.transfer import Stamp

_VERSION = 1


def index_path(home: Path, host: str, source: str, target: str) -> Path:
    """Return where the index of one source and one target on one host is kept."""
    text = json.dumps([_VERSION, host, source, target])
    return home / "sync" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def load(path: Path) -> dict[str, Stamp]:
    """Read an index; one that is missing or damaged is empty."""
    try:
        data = json.loads(path.read_bytes())
        return {name: Stamp(*stamp) for name, stamp in data["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def save(path: Path, stamps: dict[str, Stamp]) -> None:
    """Write an index in one step; a home that cannot be written loses only what an index is good for."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"files": stamps}, separators=(",", ":")), "ascii")
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
