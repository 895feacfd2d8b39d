"""`atoll doctor --data --peer` finds where a shared file system keeps its promises between machines, and where not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import HostUnreachable
from atoll.model.findings import Finding
from atoll.storage.selftest import peer_checks, peer_link
from atoll.storage.selftest.peer_steps import Steps

from ..waiting import soak
from .shared_disk import UNCACHED, Disk, machine

ATOLL = [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())"]
UNSEEN = {"unsynced writes", "open files", "appends"}
"""Promises that JuiceFS does not keep between machines."""


def compared(here: Path, there: Path) -> dict[str, Finding]:
    """Return the findings between two directories, as if of two machines, by name."""
    command = [*ATOLL, "doctor", "--data", "--as-peer", f"--path={there}"]
    return {one.name: one for one in peer_link.compare(here, command)}


def test_without_caches_every_needed_promise_is_kept(mounts: tuple[Path, Path]) -> None:
    """Two mounts as Atoll makes them keep all that it needs; lost appends and stale open files are found."""
    found = compared(*mounts)
    assert list(found) == [one.name for one in peer_checks.CHECKS]
    assert {name for name, one in found.items() if not one.works} == UNSEEN
    assert found["exchange"].detail == found["attributes"].detail == "at once"
    assert "in one step" in peer_checks.conclusion(list(found.values()))
    assert [name for name in os.listdir(mounts[0]) if name.startswith("doctor-")] == []


def test_caches_of_attributes_are_found(disk: Disk, mounts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount with caches is found by the changes that are seen late, with the seconds that they took."""
    late = {"attributes", "names", *soak((), ("rename", "exchange"))}  # each waits for the caches
    monkeypatch.setattr(
        peer_checks, "CHECKS", [one for one in peer_checks.CHECKS if one.name in {"same file system", *late}]
    )
    with disk.mounted("--attr-cache", "1", "--entry-cache", "1", "--dir-entry-cache", "1") as cached:
        found = compared(mounts[0], cached)
    assert {name for name, one in found.items() if not one.works} == late
    assert "seen after 1." in found["attributes"].detail
    assert "attr-cache 0" in found["attributes"].fix
    assert "do not share" in peer_checks.conclusion(list(found.values()))


def test_times_of_directories_that_are_left_alone_are_found(
    disk: Disk, mounts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JuiceFS's default, which makes a sync miss new files, is found by trial; a daemon does not begin on such a mount."""
    names = {"same file system", "directory times"}
    monkeypatch.setattr(peer_checks, "CHECKS", [one for one in peer_checks.CHECKS if one.name in names])
    with disk.mounted(*UNCACHED[: UNCACHED.index("--skip-dir-mtime")]) as skipping:
        found = compared(mounts[0], skipping)
        assert {name for name, one in found.items() if not one.works} == {"directory times"}
        assert "--skip-dir-mtime 0" in found["directory times"].fix
        skipping.chmod(0o755)
        (skipping / "lab").mkdir()
        settings = f'[storage]\nfilesystem = "path"\npath = "{skipping}/lab"\n'
        with machine(disk, settings) as home:
            home.atoll("data", "filesystem", "init")
            started = home.atoll("data", "ls", "/data", check=False)
            assert "leaves a directory's time as it was for 100 ms" in started.stderr
            examined = home.atoll("doctor", "--data", check=False)
            assert examined.returncode == 1
            assert "--skip-dir-mtime 0" in examined.stdout


def test_a_file_system_that_cannot_exchange_is_found(tmp_path: Path) -> None:
    """Where directories cannot change places, syncs are said to need consent; everything else may be in order."""

    class WithoutExchange(Steps):
        def perform(self, step: str, arguments: dict[str, Any]) -> Any:
            if step == "exchange":
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return super().perform(step, arguments)

    one, other = WithoutExchange(tmp_path), WithoutExchange(tmp_path)
    try:
        found = list(peer_checks.examine(one, other))
    finally:
        one.close()
        other.close()
    failed = [one.name for one in found if not one.works]
    assert failed == ["exchange", "`fcntl` locks"]  # these belong to processes, and this one is both sides
    assert "`atomic=False`" in peer_checks.conclusion([one for one in found if one.name != failed[1]])


def test_machines_with_two_file_systems_share_nothing(tmp_path: Path) -> None:
    """A peer that looks at another directory is told at once."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    found = compared(tmp_path / "one", tmp_path / "two")
    assert [(one.name, one.works) for one in found.values()] == [("same file system", False)]
    assert os.listdir(tmp_path / "one") == []


def test_a_peer_that_ends_is_named(tmp_path: Path) -> None:
    """A command that ends, cannot be started or talks of something else is an error with the next step."""
    for command in (["false"], ["echo", "welcome"], ["/no/such/program"]):
        with pytest.raises(HostUnreachable) as refused:
            list(peer_link.compare(tmp_path, command))
        assert refused.value.hint
    assert os.listdir(tmp_path) == []


def test_a_peer_touches_nothing_outside_of_its_directory(tmp_path: Path) -> None:
    """Names with slashes, unknown steps and lines that are no steps are refused, and the peer goes on."""
    (tmp_path / "doctor").mkdir()
    (tmp_path / "kept").write_text("kept")
    lines = [
        {"step": "read", "name": "kept"},
        {"step": "begin", "name": "../doctor"},
        {"step": "begin", "name": "doctor"},
        {"step": "remove", "name": "../kept"},
        {"step": "rename", "name": "x", "other": "../kept"},
        {"step": "close"},
        {"step": "clock"},
    ]
    done = subprocess.run(
        [*ATOLL, "doctor", "--data", "--as-peer", f"--path={tmp_path}"],
        input="".join(json.dumps(one) + "\n" for one in lines) + "no JSON\n",
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["error" in one for one in answers] == [True, True, False, True, True, True, False, True]
    assert (tmp_path / "kept").read_text() == "kept"
