"""The scope of a switch: the deepest place that contains every change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.storage.files.directory_cursor import DirectoryCursor
from atoll.storage.files.tree import DIRECTORY, FILE, SYMLINK, Entry, Tree, parent_of
from atoll.storage.sync.plan import apply, check_fits, check_whole, plan
from atoll.storage.sync.scope import is_within, scope_of


def directory(mode: int = 0o755, mtime_ns: int = 1) -> Entry:
    return Entry(DIRECTORY, mode, 0, mtime_ns)


def file(size: int = 1, mode: int = 0o644, mtime_ns: int = 1) -> Entry:
    return Entry(FILE, mode, size, mtime_ns)


D, D2, F, F2, L = directory(), directory(mtime_ns=2), file(), file(2), Entry(SYMLINK, 0, 0, 1, "x")
LOCKED = directory(mode=0o700)
BIG, BIG2 = file(64 << 20), file(65 << 20)
SAME = {"": D, "a": F, "d": D, "d/b": F, "d/c": F, "d/e": D, "d/e/f": F, "l": L, "m": D, "m/n": F}


def without(tree: Tree, *paths: str) -> Tree:
    return {path: entry for path, entry in tree.items() if not any(is_within(path, gone) for gone in paths)}


TABLE: list[tuple[str, Tree, Tree, str | None, bool, set[str]]] = [
    ("nothing", SAME, SAME, None, False, set()),
    ("all is new", SAME, {}, "", False, set()),
    ("one file", {**SAME, "d/b": F2}, SAME, "d/b", False, {"d"}),
    ("one file, and times above it", {**SAME, "d/b": F2, "d": D2, "": D2}, SAME, "d/b", False, {"d", ""}),
    ("one file, and a time elsewhere", {**SAME, "d/b": F2, "m": D2}, SAME, "d/b", False, {"d", "m"}),
    ("one file at the top", {**SAME, "a": F2}, SAME, "a", False, {""}),
    ("a large file", {**SAME, "d/b": BIG2}, {**SAME, "d/b": BIG}, "d", True, {""}),
    ("a large file at the top", {**SAME, "a": BIG2}, {**SAME, "a": BIG}, "", True, set()),
    ("a file that becomes large", {**SAME, "a": BIG}, SAME, "a", False, {""}),
    ("one name comes", {**SAME, "d/e/new": F, "d/e": D2}, SAME, "d/e/new", False, {"d/e"}),
    ("one name goes", without(SAME, "d/e/f"), SAME, "d/e/f", False, {"d/e"}),
    ("a whole directory comes", SAME, without(SAME, "d"), "d", False, {""}),
    ("a whole directory goes", without(SAME, "d"), SAME, "d", False, {""}),
    ("a directory becomes a file", {**without(SAME, "d"), "d": F}, SAME, "d", False, {""}),
    ("a file becomes a directory", {**SAME, "a": D, "a/x": F}, SAME, "a", False, {""}),
    ("two in one directory", {**SAME, "d/b": F2, "d/c": F2}, SAME, "d", True, {""}),
    ("two, one deeper", {**SAME, "d/b": F2, "d/e/f": F2}, SAME, "d", True, {""}),
    ("two in different directories", {**SAME, "d/b": F2, "m/n": F2}, SAME, "", True, set()),
    ("names that begin alike", {**SAME, "d/e/f": F2, "d/ee": F}, SAME, "d", True, {""}),
    ("a time", {**SAME, "d": D2}, SAME, None, False, {"d"}),
    ("times", {**SAME, "d": D2, "m": D2, "": D2}, SAME, None, False, {"", "d", "m"}),
    ("one mode", {**SAME, "d/e": LOCKED}, SAME, None, False, {"d/e"}),
    ("modes of two directories", {**SAME, "d/e": LOCKED, "m": LOCKED}, SAME, "", True, set()),
    ("modes of two directories, one in the other", {**SAME, "d/e": LOCKED, "d": LOCKED}, SAME, "d", True, {""}),
    ("a mode above a file", {**SAME, "d": LOCKED, "d/e/f": F2}, SAME, "d/e/f", False, {"d", "d/e"}),
    ("a mode beside a file", {**SAME, "m": LOCKED, "d/e/f": F2}, SAME, "", True, set()),
    ("a mode in the directory of the file", {**SAME, "d/e": LOCKED, "d/b": F2}, SAME, "d", True, {""}),
    ("the root's mode", {**SAME, "": LOCKED}, SAME, None, False, {""}),
]


@pytest.mark.parametrize(
    ("source", "target", "path", "rebuilt", "in_place"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_scopes(source: Tree, target: Tree, path: str | None, rebuilt: bool, in_place: set[str]) -> None:
    """Each change is switched by itself, several at the deepest directory above them; the rest is set in place."""
    found = scope_of(plan(source, target), target)
    assert (found.path, found.rebuilt, set(found.in_place)) == (path, rebuilt, in_place)


NAMES = st.sampled_from(["a", "b", "a-b", "c"])
LEAVES = st.one_of(st.builds(file, st.integers(0, 1), st.sampled_from([0o644, 0o400])), st.just(L))
DIRECTORIES = st.builds(directory, st.sampled_from([0o755, 0o700]), st.integers(1, 2))


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Draw a whole tree."""
    tree: Tree = {"": draw(DIRECTORIES)}
    for _ in range(draw(st.integers(0, 8))):
        parents = sorted(path for path, entry in tree.items() if entry.kind == DIRECTORY)
        parent, name = draw(st.sampled_from(parents)), draw(NAMES)
        path = f"{parent}/{name}" if parent else name
        if path not in tree:
            tree[path] = draw(st.one_of(LEAVES, DIRECTORIES))
    return tree


@given(trees(), st.one_of(st.just(Tree()), trees()), st.booleans())
def test_a_switch_at_the_scope_makes_the_whole_change(source: Tree, target: Tree, delete: bool) -> None:
    """Old outside of the scope, new inside of it and the changes in place are the new tree; nothing deeper would do."""
    kept = {path: entry for path, entry in target.items() if path in source and source[path].kind == entry.kind}
    target = target if delete else kept  # so that nothing that must stay is in the way
    made = plan(source, target, delete=delete)
    new = apply(made, target)
    check_whole(new)
    check_fits(made, target)
    scope = scope_of(made, target)
    inside = {path: entry for path, entry in new.items() if scope.contains(path)}
    outside = {path: entry for path, entry in target.items() if not scope.contains(path)}
    assert {**outside, **scope.in_place, **inside} == new
    if scope.rebuilt:
        assert scope.path is not None
        assert target[scope.path].kind == new[scope.path].kind == DIRECTORY
        changed = {path for path in target.keys() | new.keys() if target.get(path) != new.get(path)}
        below = {
            path
            for path in changed
            if path not in target or path not in new or target[path][:3] != new[path][:3] or new[path].kind != DIRECTORY
        }
        start = len(scope.path) + 1 if scope.path else 0
        assert scope.path in below or len({path[start:].split("/")[0] for path in below if path != scope.path}) > 1
    elif scope.path:
        assert parent_of(scope.path) in scope.in_place


def test_a_large_file_among_very_many_is_switched_alone() -> None:
    """Its directory is not linked for its sake where that takes longer than it saves."""
    many = {f"n{number}": F for number in range(1500)}
    target = {**SAME, "a": BIG, **many}
    assert scope_of(plan({**target, "a": BIG2}, target), target).path == "a"


@pytest.mark.parametrize(
    ("put", "drop"),
    [
        ({"x/y": F}, set()),
        ({"a/y": F}, set()),
        ({"d": F}, set()),
        ({"d": F}, {"d/b", "d/c", "d/e"}),
        ({}, {"d"}),
        ({}, {""}),
        ({"d/b": F2}, {"d/b"}),
        ({"d/e/g": F}, {"d/e", "d/e/f"}),
    ],
)
def test_plans_that_make_no_tree_are_refused(put: Tree, drop: set[str]) -> None:
    """A plan that leaves something without its directory is refused before anything is built."""
    from atoll.storage.sync.plan import Plan

    with pytest.raises(ValueError, match=r"directory above|comes and goes|root"):
        check_fits(Plan(frozenset(drop), put), SAME)


def test_ways_through_directories(tmp_path: Path) -> None:
    """Any order of directories and any depth is walked with few open descriptors, and no symlink is followed."""
    deep = "/".join(["d"] * 150)
    (tmp_path / deep).mkdir(parents=True)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/link").symlink_to("b")
    (tmp_path / "a/file").touch()
    root = os.open(tmp_path, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    with DirectoryCursor(root) as cursor:
        for path in ["", "a/b", "a", deep, "a/b", deep[:-2], deep[:127], deep, ""]:
            assert os.path.samestat(os.fstat(cursor.open(path)), (tmp_path / path).stat())
            assert len(os.listdir("/proc/self/fd")) < before + 70
        for path, error in [
            ("a/link", NotADirectoryError),
            ("a/file", NotADirectoryError),
            ("a/x/y", FileNotFoundError),
        ]:
            with pytest.raises(error):
                cursor.open(path)
            assert os.path.samestat(os.fstat(cursor.open("a/b")), (tmp_path / "a/b").stat())
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(root)
