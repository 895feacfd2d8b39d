"""Paths on a volume, names for people, and the rules that exclude some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atoll.storage.client.volume import sync_target, volume_path
from atoll.storage.files.ignore import IgnoreRules
from atoll.terminal_text import printable


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("remote_dir", "sync/remote_dir"),
        ("a/b", "sync/a/b"),
        ("./a//b/", "sync/a/b"),
        ("/data/a", "a"),
        ("/data/sync/x", "sync/x"),
        ("//data//a/./b/", "a/b"),
        ("data/x", "sync/data/x"),
        ("-x", "sync/-x"),
        ("caf\udce9", "sync/caf\udce9"),
        ("atoll://a/b", "a/b"),
        ("atoll://a//./b/", "a/b"),
        ("atoll:///data/a/b", "a/b"),
        ("atoll:x", "sync/atoll:x"),
    ],
)
def test_targets(given: str, target: str) -> None:
    """A relative target is below `sync`, an absolute one is where it says."""
    assert sync_target(given) == target


@pytest.mark.parametrize(
    "given",
    ["", "/", "/data", "/data/", "/data/.", ".", "./", "..", "a/..", "/data/..", "/data/../etc", "/etc", "/database/x",
     "atoll://", "atoll:///", "atoll:///data", "atoll://.", "atoll://..", "atoll://a/../b", "atoll:///etc", "atoll://\0",
     "a\0b", "/data/\0", "a/../b", "\ud800"],
)  # fmt: skip
def test_targets_that_escape(given: str) -> None:
    """What names nothing below `/data`, or could leave it, is a `ValueError`."""
    with pytest.raises(ValueError, match=r"."):
        sync_target(given)


def test_the_root_is_a_path_of_the_volume() -> None:
    """`/data` itself can be looked at, in each of its spellings."""
    spellings = ("", "/data", "/data/", ".", "atoll://", "atoll:///data")
    assert [volume_path(text) for text in spellings] == [""] * len(spellings)


def test_addresses() -> None:
    """An `atoll://` address is the path that fsspec takes it for, and not the name of a directory."""
    given = ("atoll://a/b", "atoll:///data/a/b", "/data/atoll:/a", "atoll://data/a")
    assert [volume_path(text) for text in given] == ["a/b", "a/b", "atoll:/a", "data/a"]
    for refused in ("atoll:///a", "atoll://a/.."):
        with pytest.raises(ValueError, match="`"):
            volume_path(refused)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name", "plain name"),
        ("new\nline", "new\\nline"),
        ("\x1b[31m", "\\x1b[31m"),
        ("caf\udce9", "caf\\xe9"),
        ("rtl\u202e", "rtl\\u202e"),
        ("grüße", "grüße"),
    ],
)
def test_printable(name: str, shown: str) -> None:
    """No name can act on a terminal."""
    assert printable(name) == shown


def rules(exclude: list[str], files: dict[str, str]) -> IgnoreRules:
    made = IgnoreRules(exclude)
    for directory, text in files.items():
        made.add(directory, text)
    return made


@pytest.mark.parametrize(
    ("exclude", "files", "path", "is_directory", "excluded"),
    [
        ([], {}, "a.log", False, False),
        (["*.log"], {}, "d/a.log", False, True),
        (["/a.log"], {}, "d/a.log", False, False),
        (["build/"], {}, "d/build", True, True),
        (["build/"], {}, "d/build", False, False),
        ([], {"": "*.log"}, "d/a.log", False, True),
        ([], {"": "*.log", "d": "!a.log"}, "d/a.log", False, False),
        ([], {"": "*.log", "d": "!a.log"}, "e/a.log", False, True),
        ([], {"d": "/x"}, "d/x", False, True),
        ([], {"d": "/x"}, "x", False, False),
        ([], {"d": "x"}, "d/e/x", False, True),
        (["!a.log"], {"": "*.log"}, "a.log", False, False),
        (["a.log"], {"": "!a.log"}, "a.log", False, True),
        ([], {"": "# comment\n\n"}, "# comment", False, False),
        ("*.pyc", {}, "a.pyc", False, True),
    ],
)
def test_rules(exclude: list[str], files: dict[str, str], path: str, is_directory: bool, excluded: bool) -> None:
    """`exclude` decides before the nearest `.atollignore`, which decides before those above it."""
    assert rules(exclude, files).excludes(path, is_directory) is excluded


def test_paths_that_are_left_out_whatever_the_patterns_say() -> None:
    """Atoll's own state is excluded even where a pattern takes it in."""
    assert IgnoreRules(["!state"], paths=["state"]).excludes("state", True)


def test_the_clients_half_imports_without_what_only_linux_has() -> None:
    """The SDK's sync and the volume's client import where `fcntl` and the like do not exist, and load no library."""
    code = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        "import atoll.sdk.data.sync, atoll.storage.client.volume, atoll.storage.sync.client, atoll.storage.sync.index\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'rich', 'cyclopts', 'cloudpickle'}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
