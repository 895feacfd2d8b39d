"""What `sync_dir` says of a directory that it cannot upload."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import sync_dir
from atoll.errors import SourceNotFound
from atoll.storage.client import sync_summary
from atoll.storage.client.sync_summary import DEV
from atoll.storage.files import scan
from atoll.storage.files.ignore import IgnoreRules
from atoll.storage.files.scan import scan_source

from ..volumes import ThreadHost


def test_a_missing_source_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No host is started for it, and what caused the error is one line without frames of Atoll's own."""
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    with pytest.raises(SourceNotFound, match="missing") as caught:
        sync_dir(tmp_path / "missing", "x")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert len(traceback.format_exception(caught.value.__cause__)) == 1
    assert not (tmp_path / "home").exists()


def write(root: Path, *names: str, content: str = "x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A host with a volume of its own."""
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    (tmp_path / "volume").mkdir()
    made = ThreadHost(tmp_path / "volume")
    yield made
    made.wait()


def test_the_preset_leaves_out_what_tools_make(tmp_path: Path, host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As a text alone it is the preset, in a list a pattern; a source with a `dev` of its own has to say which."""
    source = tmp_path / "source"
    write(
        source, "main.py", ".git/HEAD", ".venv/bin/python", "p/node_modules/a/b.js", "p/__pycache__/m.pyc", "sub/dev/x"
    )
    sync_dir(source, "t", exclude="dev", host=host)
    mirror = host.data / "sync/t"
    assert sorted(str(path.relative_to(mirror)) for path in mirror.rglob("*") if path.is_file()) == [
        "main.py",
        "sub/dev/x",
    ]
    sync_dir(source, "u", exclude=["dev"], host=host)
    assert not (host.data / "sync/u/sub/dev").exists()
    assert (host.data / "sync/u/.git").is_dir()
    write(source, "dev/x")
    with pytest.raises(ValueError, match="has a `dev` of its own"):
        sync_dir(source, "t", exclude="dev", host=host)
    sync_dir(source, "t", exclude=DEV, host=host)
    assert (mirror / "dev/x").exists()
    assert capsys.readouterr() == ("", "")


def test_programs_hear_of_much_that_tools_make_and_of_long_syncs(
    tmp_path: Path, host: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr, once, when it is sent; a small quick sync says nothing."""
    source = tmp_path / "source"
    write(source, "main.py", ".git/HEAD")
    sync_dir(source, "t", host=host)
    assert capsys.readouterr() == ("", "")
    write(source, ".git/pack", content="x" * (2 << 20))
    for expected in (
        'atoll: mirrored with the rest: `.git` 2.0 MiB; `exclude="dev"` leaves out what such tools make\n',
        "",
    ):
        sync_dir(source, "t", host=host)
        assert capsys.readouterr() == ("", expected)
    monkeypatch.setattr(sync_summary, "_LONG_SECONDS", 0.0)
    sync_dir(source, "t", host=host)
    assert capsys.readouterr().err.startswith("atoll: 3 files, 2.0 MiB; sent 0 files, 0 B; removed 0; left out 0; ")


def test_times_out_of_range_are_clamped_and_said(
    tmp_path: Path, host: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the year 2300 comes with the last time that can be told, and is not sent again."""
    source = tmp_path / "source"
    write(source, "far", "near")
    os.utime(source / "far", (10_413_792_000, 10_413_792_000))
    if (source / "far").stat().st_mtime_ns <= scan._MOST:
        pytest.skip("this file system has no such times")
    said = "atoll: times before 1677 or after 2262 were moved into that range: `far`\n"
    for _ in range(2):
        sync_dir(source, "t", host=host)
        assert capsys.readouterr().err == said
        assert (host.data / "sync/t/far").stat().st_mtime_ns == scan._MOST
    changed = (host.data / "sync/t/far").stat().st_ctime_ns
    write(source, "far", content="other")
    os.utime(source / "far", (-90_000_000_000, -90_000_000_000))
    sync_dir(source, "t", host=host)
    assert (host.data / "sync/t/far").read_text() == "other"
    assert (host.data / "sync/t/far").stat().st_ctime_ns != changed


def test_sizes_of_tools_directories_are_those_of_the_topmost(tmp_path: Path) -> None:
    """A cache in a virtual environment is the environment's, and a file of such a name is none."""
    write(tmp_path, ".venv/lib/__pycache__/m.pyc", ".venv/x", "a/__pycache__/1", "b/__pycache__/1", content="12345")
    write(tmp_path, "node_modules")
    found = sync_summary._largest(scan_source(str(tmp_path)))
    assert found == [(".venv", (10, 1)), ("__pycache__", (10, 2))]
    assert not sync_summary._largest(scan_source(str(tmp_path), IgnoreRules(DEV)))
