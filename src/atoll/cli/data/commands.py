"""`atoll data`: look at a volume, copy to, from and within it, mirror a directory. `-` is stdin or stdout."""

from __future__ import annotations

import stat
from typing import Annotated, Any

import cyclopts

from atoll.cli.confirmation import DryRun, Yes, confirmed, counted
from atoll.cli.data.paths import expanded, opened
from atoll.cli.programs.program import TargetError
from atoll.cli.tables import date, print_json
from atoll.cli.terminal import echo, echo_name, write_raw
from atoll.sdk.data.glob import has_magic
from atoll.sdk.data.volume import Volume, VolumeEntry
from atoll.storage.protocol.connection import volume_path
from atoll.storage.protocol.progress import size_text
from atoll.terminal_text import printable

app = cyclopts.App(
    name="data",
    help="Look at /data, and copy files to, from and within it. Paths are below /data; quoted patterns (*, ?, [...], "
    "**) match there. `--host URL` takes the volume of a server in place of that of the login.",
    help_format="plaintext",
    version_flags=[],
    result_action="return_value",
)
for _name, _where, _summary in (
    ("get", "copy:get", "Copy files and directories from /data."),
    ("put", "copy:put", "Copy files and directories to /data."),
    ("cp", "copy:cp", "Copy files and directories within /data."),
    ("mv", "copy:mv", "Rename or move files and directories within /data."),
    ("sync", "sync:sync", "Make a directory of /data a mirror of a local one."),
    ("snapshot", "snapshots:snapshot", "Keep the present state of a directory of /data."),
    ("snapshots", "snapshots:snapshots", "List the snapshots of /data and its directories."),
    ("diff", "snapshots:diff", "Show how a snapshot differs from a later one, or from now."),
    ("restore", "snapshots:restore", "Put a snapshot back in its directory's place."),
    ("rm-snapshot", "snapshots:rm_snapshot", "Remove snapshots."),
    ("filesystem", "filesystem:app", "Prepare a file system that machines share, and look at it."),
):
    app.command(f"atoll.cli.data.{_where}", name=_name, help=_summary)


@app.command
def ls(
    *paths: str,
    long: Annotated[bool, cyclopts.Parameter(name=["--long", "-l"], negative="")] = False,
    json: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """List directories of /data, or files.

    Parameters
    ----------
    paths: str
        Files and directories to list; /data by default.
    long: bool
        Show modes, sizes and times.
    json: bool
        Print a list of objects with `name`, `path`, `type`, `size`, `mode`, `mtime_ns` and `target`.
    """
    with opened() as volume:
        groups = _listed(volume, paths or ("/data",))
    if json:
        print_json([_described(name, entry) for _, group in groups for name, entry in group])
        return 0
    for number, (title, group) in enumerate(groups):
        if len(groups) > 1 and title:
            if number:
                echo()
            echo_name("", f"{title}:")
        for name, entry in group:
            if long:
                echo_name(_details(entry), name + (f" -> {entry.target()}" if entry.target() else ""))
            else:
                echo_name("", name)
    return 0


def _listed(volume: Volume, paths: tuple[str, ...]) -> list[tuple[str, list[tuple[str, VolumeEntry]]]]:
    """Return the named files, and each named directory with its entries."""
    names, groups = [], []
    for path in expanded(volume, paths, follow=False):
        entry = volume.entry(path)
        if entry.is_dir():
            groups.append((path, [(below.name, below) for below in volume.scandir(path)]))
        else:
            alone = len(paths) == 1 and not has_magic(paths[0])
            names.append((entry.name if alone else path, entry))
    return [("", names), *groups] if names else groups


def _kind(entry: VolumeEntry) -> str:
    if entry.is_symlink():
        return "symlink"
    return "directory" if entry.is_dir() else "file" if entry.is_file() else "special"


def _described(name: str, entry: VolumeEntry) -> dict[str, object]:
    status = entry.stat()
    return {
        "name": name,
        "path": entry.path,
        "type": _kind(entry),
        "size": status.st_size if stat.S_ISREG(status.st_mode) else 0,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "mtime_ns": status.st_mtime_ns,
        "target": entry.target(),
    }


def _details(entry: VolumeEntry) -> str:
    status = entry.stat()
    mode = stat.filemode(status.st_mode) if _kind(entry) != "special" else "?" + stat.filemode(status.st_mode)[1:]
    moment = date(status.st_mtime, "%Y-%m-%d %H:%M")
    return f"{mode} {status.st_size if stat.S_ISREG(status.st_mode) else 0:>12} {moment} "


@app.command
def cat(*paths: str) -> int:
    """Print files of /data, one after the other. All are looked at first.

    Parameters
    ----------
    paths: str
        The files.
    """
    if not paths:
        raise TargetError("name the files to print")
    with opened() as volume:
        found = expanded(volume, paths)
        for path in found:
            if volume.isdir(path):
                raise IsADirectoryError(f"`{printable(path)}` is a directory")
        for path in found:
            print_content(volume, path)
    return 0


def print_content(volume: Volume, path: str) -> None:
    """Write a file to stdout as it comes."""
    with volume.open(path, "rb", buffering=0) as file:
        while piece := file.read(4 << 20):
            write_raw(piece)


@app.command
def rm(
    *paths: str,
    recursive: Annotated[bool, cyclopts.Parameter(name=["--recursive", "-r"], negative="")] = False,
    force: Annotated[bool, cyclopts.Parameter(name=["--force", "-f"], negative="")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> int:
    """Remove files of /data. When one is not there, or is a directory and `-r` is not given, none is removed.

    Before directories with files go, a terminal is asked; elsewhere `--yes` or `--force` is needed.

    Parameters
    ----------
    paths: str
        Files and directories to remove.
    recursive: bool
        Remove directories with all that they hold.
    force: bool
        Missing names are no error, and nothing is asked.
    yes: bool
        Do not ask.
    dry_run: bool
        Only print the names.
    """
    if not paths and not force:
        raise TargetError("name the files to remove")
    if any(not volume_path(path) for path in paths):
        raise ValueError("`/data` itself cannot be removed")
    with opened() as volume:
        found: list[str] = []
        for path in paths:
            try:
                found += expanded(volume, [path], follow=False)
            except FileNotFoundError:
                if not force:
                    raise
        for path in found:
            if not recursive and volume.entry(path).is_dir(follow_symlinks=False):
                raise IsADirectoryError(f"`{printable(path)}` is a directory; remove it with `rm -r`")
        # the others are removed with a directory above them
        tops = [path for path in dict.fromkeys(found) if not any(path.startswith(f"{above}/") for above in found)]
        if dry_run:
            for path in tops:
                echo_name("would remove ", path)
            return 0
        if recursive and not (yes or force) and not _may_remove(volume, tops):
            return 1
        for path in tops:
            volume.remove(path, recursive=recursive)
    return 0


def _may_remove(volume: Volume, paths: list[str]) -> bool:
    """Ask whether directories with files may go."""
    things, files, total = [], 0, 0
    for path in paths:
        if volume.entry(path).is_dir(follow_symlinks=False):
            found = volume.sums(path)[0][""]
            if found.files:
                things.append(f"{path}  {counted(found.files, 'file')}, {size_text(found.apparent_bytes)}")
                files, total = files + found.files, total + found.apparent_bytes
    if not things:
        return True
    kept = [one.name for one in volume.snapshots() if any(f"{path}/".startswith(f"{one.path}/") for path in paths)]
    cost = f"the snapshot `{kept[-1]}` may have earlier states" if kept else "no snapshot has them"
    return confirmed(
        things, [f"{counted(files, 'file')}, {size_text(total)}; {cost}"], "remove for good?", replaceable=False
    )


@app.command
def usage(*, json: Annotated[bool, cyclopts.Parameter(negative="")] = False) -> int:
    """Show the volume's use and its quota, and who enforces it.

    Parameters
    ----------
    json: bool
        Print an object with `bytes` and `files` (0 for no limit), `used_bytes`, `used_files`, `kind` (`user`, `project`,
        `measured` or `none`), `complete` and `measured_at`.
    """
    with opened() as volume:
        quota = volume.quota()
    if json:
        print_json(quota.to_data())
        return 0
    echo(("" if quota.complete else "at least ") + quota.text() + (f" ({quota.per_cent}%)" if quota.per_cent else ""))
    if quota.kind in _ENFORCED:
        echo(_ENFORCED[quota.kind])
    return 0


_ENFORCED = {
    "user": "enforced by the file system, for the user's host uid",
    "project": "enforced by the file system, for the volume's project",
    "measured": "measured from time to time: the file system has no quotas",
    "juicefs": "enforced by JuiceFS, on all machines together",
}


@app.command
def du(
    *paths: str,
    depth: Annotated[int, cyclopts.Parameter(name=["--depth", "-d"], validator=cyclopts.validators.Number(gte=0))] = 0,
    bytes_: Annotated[bool, cyclopts.Parameter(name=["--bytes", "-b"], negative="")] = False,
    json: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Show the disk space of files and directories of /data; a file with several names counts once.

    Parameters
    ----------
    paths: str
        Files and directories to measure; /data by default.
    depth: int
        Show directories down to this depth below each path, too.
    bytes_: bool
        Show bytes.
    json: bool
        Print a list of objects with `path`, `allocated_bytes`, `apparent_bytes`, `files` and `directories`, and for
        each path that was named `disk_bytes` and `disk_free_bytes` of its file system.
    """
    rows: list[dict[str, Any]] = []
    with opened() as volume:
        for path in expanded(volume, paths or ("/data",), follow=False):
            sums, disk, free = volume.sums(path, depth, follow=path == "/data")
            for below, sums_below in sums.items():
                rows.append({"path": f"{path}/{below}" if below else path, **sums_below._asdict()})
                if not below:
                    rows[-1].update(disk_bytes=disk, disk_free_bytes=free)
    if json:
        print_json(rows)
        return 0
    for row in rows:
        size = row["allocated_bytes"]
        echo_name(f"{size}\t" if bytes_ else f"{size_text(size):>10}  ", row["path"])
    return 0
