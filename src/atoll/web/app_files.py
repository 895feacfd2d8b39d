"""Files beside a function of the published clients (`app_files`), as a sandbox has them at `/app`.

Their contents are in the user's volume, each by its hash: SHA-256 of the content followed by the decimal number of the mode.
They are copied into the sandbox's memory before the function is loaded, and checked. `/app` is a link there that leads to
nothing until then, since the sandbox's root is read-only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable

APP = "/app"
STORE = ".atoll/app-files"
"""Below `/data`: contents by their hashes."""
VARIABLE = "ATOLL_APP_FILES"
"""Names the files that a sandbox has, by a digest: others have another sandbox."""
LINKED_BYTES = 64 << 20
"""A file of so many bytes is a link to the volume: its copy would take the function's memory."""
_PIECE_BYTES = 1 << 20


def place(files: Iterable[tuple[str, str]], data: str = "/data") -> None:
    """Have files below `/app`, which becomes the working directory and a place of modules.

    Args:
        files: the path of each, relative to `/app`, and its hash.
        data: the volume.

    Raises:
        OSError, ValueError: one cannot be placed, or is another by now.
    """
    try:
        target = os.readlink(APP)
    except OSError as error:
        raise ValueError(
            f"a directory of the machine is shown at `{APP}` here: the function's files have no place"
        ) from error
    if not os.path.isdir(target):
        made = tempfile.mkdtemp(prefix=".app-", dir=os.path.dirname(target))
        try:
            for path, digest in files:
                _copy(os.path.join(data, STORE, digest), os.path.join(made, path), path, digest)
            os.rename(made, target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        importlib.invalidate_caches()
    if APP not in sys.path:
        sys.path.append(APP)
    os.chdir(APP)


def _copy(stored: str, target: str, path: str, digest: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    found = hashlib.sha256()
    try:
        source = open(stored, "rb")
    except FileNotFoundError:
        raise ValueError(f"`{path}` is no longer in `/data/{STORE}`: deploy again") from None
    with source:
        info = os.fstat(source.fileno())
        linked = info.st_size >= LINKED_BYTES
        with contextlib.nullcontext() if linked else open(target, "xb") as copy:
            while content := source.read(_PIECE_BYTES):
                found.update(content)
                if copy is not None:
                    copy.write(content)
    found.update(str(info.st_mode).encode())
    if found.hexdigest() != digest:
        raise ValueError(f"`{path}` was changed in `/data/{STORE}`: remove `/data/{STORE}/{digest}`, and deploy again")
    if linked:
        os.symlink(stored, target)
    else:
        os.chmod(target, info.st_mode & 0o777)
