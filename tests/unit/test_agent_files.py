"""The copies of the package that sandboxes see, one for each version."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from pathlib import Path

from atoll.node import mounted_files


def test_what_no_daemon_holds_is_removed(tmp_path: Path) -> None:
    """Of the versions' directories those stay that a running daemon holds, and what may be half made."""
    mine, hold = mounted_files.hold(tmp_path)
    other = tmp_path / "0.0.9-aaaa"
    for name in ("0.0.9-aaaa", "0.0.8-bbbb", ".stage-new", ".stage-old"):
        (tmp_path / name / "atoll").mkdir(parents=True)
        (tmp_path / name / "atoll" / "errors.py").touch()
    os.utime(tmp_path / ".stage-old", (0, time.time() - 2 * mounted_files.STAGE_SECONDS))
    other_hold = os.open(other, os.O_RDONLY)
    fcntl.flock(other_hold, fcntl.LOCK_SH)
    mounted_files.remove_unused(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "0.0.9-aaaa", ".stage-new"}
    os.close(other_hold)
    mounted_files.remove_unused(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, ".stage-new"}
    os.close(hold)
    mounted_files.remove_unused(tmp_path)
    again, hold = mounted_files.hold(tmp_path)
    assert again == mine
    os.close(hold)


def test_only_other_versions_are_others(tmp_path: Path) -> None:
    """What storage peers share is no sign of another daemon, whoever holds it; a held directory of a version is."""
    mine, hold = mounted_files.hold(tmp_path)
    holds = [hold]
    for name, used in (("native-1234", False), ("0.0.9-aaaa", True)):
        (tmp_path / name).mkdir()
        holds.append(os.open(tmp_path / name, os.O_RDONLY))
        fcntl.flock(holds[-1], fcntl.LOCK_SH)
        assert mounted_files.used_by_others(mine) == used
    for descriptor in holds:
        os.close(descriptor)
    assert not mounted_files.used_by_others(mine)


def test_functions_can_read_all_bytecode(tmp_path: Path) -> None:
    """A daemon of root keeps its files to itself, but functions have other uids: without bytecode each start is slow."""
    before = os.umask(0o077)
    try:
        library, hold = mounted_files.hold(tmp_path)
        asyncio.run(mounted_files.compile_rest(library))
    finally:
        os.umask(before)
    os.close(hold)
    compiled = list(library.rglob("*.pyc"))
    assert len(compiled) >= len(list((library / "atoll").rglob("*.py")))
    assert [path for path in compiled if path.stat().st_mode & 0o044 != 0o044] == []
    assert [path for path in library.rglob("__pycache__") if path.stat().st_mode & 0o055 != 0o055] == []


def test_a_daemon_that_leaves_compiles_no_longer(tmp_path: Path) -> None:
    """The process that compiles ends with its task; the server's own parts are not among the files."""
    library, hold = mounted_files.hold(tmp_path)
    os.close(hold)
    assert (library / "atoll" / "host").is_dir()
    assert not (library / "atoll" / "server").exists()

    before = _children()  # of other tests

    async def leave() -> None:
        task = asyncio.ensure_future(mounted_files.compile_rest(library))
        await asyncio.sleep(0)
        assert _children() != before
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert _children() <= before

    asyncio.run(leave())
    assert not (library / ".compiled").exists()


def _children() -> set[str]:
    """Return the processes that this one has started and not waited for."""
    return {pid for tasks in Path("/proc/self/task").iterdir() for pid in (tasks / "children").read_text().split()}
