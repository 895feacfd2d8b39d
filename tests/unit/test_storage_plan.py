"""The plan: from two trees to what turns one into the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import SyncError
from atoll.storage.files.tree import DIRECTORY, FILE, SPECIAL, SYMLINK, Entry, Tree, parent_of
from atoll.storage.files.tree_wire import pack_entries, pack_paths, unpack_entries, unpack_paths
from atoll.storage.sync.plan import apply, check_whole, plan


def directory(mode: int = 0o755, mtime_ns: int = 1) -> Entry:
    return Entry(DIRECTORY, mode, 0, mtime_ns)


def file(size: int = 1, mode: int = 0o644, mtime_ns: int = 1) -> Entry:
    return Entry(FILE, mode, size, mtime_ns)


def link(target: str) -> Entry:
    return Entry(SYMLINK, 0, 0, 1, target)


ROOT = {"": directory()}
SAME = {**ROOT, "a": file(), "d": directory(), "d/b": file(), "l": link("a")}

TABLE: list[tuple[str, Tree, Tree, dict[str, set[str]]]] = [
    ("equal trees need nothing", SAME, SAME, {}),
    ("all is put where nothing stands", SAME, {}, {"put": set(SAME), "send": {"a", "d/b"}}),
    ("another size is sent", {**ROOT, "a": file(2)}, {**ROOT, "a": file(1)}, {"put": {"a"}, "send": {"a"}}),
    ("another time is sent", {**ROOT, "a": file(mtime_ns=2)}, {**ROOT, "a": file()}, {"put": {"a"}, "send": {"a"}}),
    ("another mode is copied", {**ROOT, "a": file(mode=0o600)}, {**ROOT, "a": file()}, {"put": {"a"}, "copy": {"a"}}),
    (
        "what the owner cannot read is sent",
        {**ROOT, "a": file(mode=0o600)},
        {**ROOT, "a": file(mode=0o000)},
        {"put": {"a"}, "send": {"a"}},
    ),
    ("what is gone goes with all below", ROOT, {**ROOT, "d": directory(), "d/b": file()}, {"drop": {"d", "d/b"}}),
    (
        "a file takes the place of a directory",
        {**ROOT, "d": file()},
        {**ROOT, "d": directory(), "d/b": file()},
        {"drop": {"d/b"}, "put": {"d"}, "send": {"d"}},
    ),
    (
        "a directory takes the place of a symlink",
        {**ROOT, "l": directory(), "l/b": file()},
        {**ROOT, "l": link("/")},
        {"put": {"l", "l/b"}, "send": {"l/b"}},
    ),
    ("a symlink that points elsewhere is put", {**ROOT, "l": link("b")}, {**ROOT, "l": link("a")}, {"put": {"l"}}),
    ("a directory's time is put", {"": directory(mtime_ns=2)}, ROOT, {"put": {""}}),
    ("a special file at the target goes", ROOT, {**ROOT, "p": Entry(SPECIAL, 0o644, 0, 1)}, {"drop": {"p"}}),
]


@pytest.mark.parametrize(("source", "target", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_operations(source: Tree, target: Tree, expected: dict[str, set[str]]) -> None:
    """Each difference between two trees has the operations that mend it and no others."""
    made = plan(source, target)
    found = {"drop": set(made.drop), "put": set(made.put), "copy": set(made.copy), "send": set(made.send)}
    assert {name: value for name, value in found.items() if value} == expected
    assert bool(made) == bool(expected)
    assert apply(made, target) == source


def test_a_suspect_file_is_sent_although_it_looks_the_same() -> None:
    """A file whose content may have changed behind an equal size and time travels."""
    made = plan(SAME, SAME, suspect={"a"})
    assert made.send == ["a"]
    assert plan({**SAME, "a": file(mode=0o600)}, SAME, suspect={"a"}).send == ["a"]


def test_without_delete_nothing_goes() -> None:
    """With `delete=False` names that the source lacks stay, in directories that it has or lacks."""
    target = {**ROOT, "x": file(), "d": directory(), "d/y": file(), "e": directory(), "e/z": file()}
    made = plan(SAME, target, delete=False)
    assert not made.drop
    assert made.keeps
    assert apply(made, target) == {**target, **SAME}


def kept_named(name: str) -> Callable[[str, bool], bool]:
    return lambda path, _is_directory: path.rpartition("/")[2] == name


def test_kept_names_stay_with_what_is_above_and_below_them() -> None:
    """An excluded name at the target stays with its content, and so do the directories that lead to it."""
    target = {
        **ROOT,
        "gone": directory(),
        "gone/keep": directory(),
        "gone/keep/x": file(),
        "gone/other": file(),
    }
    made = plan(ROOT, target, kept=kept_named("keep"))
    assert made.drop == {"gone/other"}
    assert apply(made, target).keys() == {"", "gone", "gone/keep", "gone/keep/x"}


@pytest.mark.parametrize("delete", [True, False])
def test_something_else_cannot_replace_a_directory_that_keeps_names(delete: bool) -> None:
    """A file in the source against a directory with names that stay is refused by name."""
    with pytest.raises(SyncError, match=r"`d` is a directory at the target that keeps `d/keep`"):
        plan(
            {**ROOT, "d": file()}, {**ROOT, "d": directory(), "d/keep": file()}, delete=delete, kept=kept_named("keep")
        )


def test_without_delete_no_file_goes_for_a_directory() -> None:
    """What is merged removes no content: a file in a directory's place is refused by name, a symlink replaced."""
    source = {**ROOT, "d": directory(), "d/x": file()}
    with pytest.raises(SyncError, match=r"`d` is a file at the target") as caught:
        plan(source, {**ROOT, "d": file()}, delete=False)
    assert "exclude" not in caught.value.hint
    with pytest.raises(SyncError, match=r"`\.` is a file at the target"):
        plan(ROOT, {"": file()}, delete=False)
    assert plan(source, {**ROOT, "d": link("/data/e")}, delete=False).put.keys() == {"d", "d/x"}
    assert plan(source, {**ROOT, "d": file()}).put.keys() == {"d", "d/x"}


def test_a_kept_directory_does_not_go_for_a_file_of_its_name() -> None:
    """What is below a directory that is excluded as such stays where the source has a file instead, and is told."""

    def kept(path: str, is_directory: bool) -> bool:
        return path == "build" and is_directory

    with pytest.raises(SyncError, match=r"`build` is a directory at the target that keeps `build/o`"):
        plan({**ROOT, "build": file()}, {**ROOT, "build": directory(), "build/o": file()}, kept=kept)


NAMES = st.sampled_from(["a", "b", "a-b", "A", ".hidden", "-rf", "new\nline", "caf\udce9", "\U0001f600", "x" * 255])
LEAVES = st.one_of(
    st.builds(file, st.integers(0, 2), st.sampled_from([0o644, 0o400, 0o000]), st.integers(-1, 2)),
    st.builds(link, st.sampled_from(["a", "/nowhere", "../.."])),
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Make trees that can exist: every parent is a directory."""
    tree = {"": draw(st.builds(directory, st.sampled_from([0o755, 0o700]), st.integers(0, 2)))}
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(sorted(path for path, entry in tree.items() if entry.kind == DIRECTORY)))
        name = draw(NAMES)
        path = f"{parent}/{name}" if parent else name
        if path not in tree:
            tree[path] = draw(st.one_of(LEAVES, st.builds(directory, st.just(0o755), st.integers(0, 2))))
    return tree


@given(trees(), trees() | st.just({}))
def test_applying_the_plan_makes_the_source(source: Tree, target: Tree) -> None:
    """For all trees, the plan applied to the target gives the source, and there is nothing left to do."""
    result = apply(plan(source, target), target)
    assert result == source
    check_whole(result)
    assert not plan(source, result)


@given(trees(), trees(), st.sampled_from(["a", "b", ".hidden"]), st.booleans())
def test_a_plan_with_kept_names_makes_a_whole_tree(source: Tree, target: Tree, name: str, delete: bool) -> None:
    """Whatever stays, the result holds the source, what was to be kept, and a directory above each name."""
    source = {path: entry for path, entry in source.items() if name not in path.split("/")}
    try:
        result = apply(plan(source, target, delete=delete, kept=kept_named(name)), target)
    except SyncError:
        return
    check_whole(result)
    assert source.items() <= result.items()
    for path, entry in target.items():
        if name in path.split("/") or (not delete and path not in source):
            assert result[path] == entry
    if delete:
        extra = result.keys() - source.keys()
        needed = {path for path in extra if name in path.split("/")}
        for path in list(needed):
            while path:
                path = parent_of(path)
                needed.add(path)
        assert extra <= needed


@given(trees())
def test_trees_travel(tree: Tree) -> None:
    """A tree survives its way over the wire, whatever its names."""
    received: Tree = {}
    for buffer in pack_entries(tree):
        received.update(unpack_entries(bytearray(buffer)))
    assert received == tree


@pytest.mark.parametrize("path", ["/a", "a//b", "../a", "a/..", "a/./b", "a\0b", "a/"])
def test_paths_that_leave_a_tree_are_refused(path: str) -> None:
    """No received entry can name something outside its tree."""
    (buffer,) = pack_entries({path: Entry(FILE, 0, 0, 0)})
    with pytest.raises(ValueError, match="path"):
        unpack_entries(buffer)


def test_a_directory_that_stands_is_not_made_again() -> None:
    """The description of a plan says `mkdir` for directories that come, not for those that change."""
    source = {"": directory(mtime_ns=2), "d": directory(0o700), "new": directory()}
    lines = list(plan(source, {"": directory(), "d": directory()}).lines())
    assert lines == ["mode    .", "mode    d", "mkdir   new"]


def test_a_plan_is_data() -> None:
    """Each operation is a dictionary that JSON takes, in the order of the paths."""
    made = plan({**ROOT, "a": file(3), "l": link("a"), "d": directory()}, {**ROOT, "gone": file()})
    assert json.loads(json.dumps(made.operations())) == [
        {"path": "a", "operation": "send", "kind": "f", "mode": 0o644, "size": 3, "mtime_ns": 1, "target": ""},
        {"path": "d", "operation": "mkdir", "kind": "d", "mode": 0o755, "size": 0, "mtime_ns": 1, "target": ""},
        {"path": "gone", "operation": "remove"},
        {"path": "l", "operation": "link", "kind": "l", "mode": 0, "size": 0, "mtime_ns": 1, "target": "a"},
    ]


@given(trees())
def test_trees_survive_as_columns(tree: Tree) -> None:
    """What `pack_entries` makes `unpack_entries` takes back."""
    received: Tree = {}
    for buffer in pack_entries(tree):
        received.update(unpack_entries(bytearray(buffer)))
    assert received == tree


@pytest.mark.parametrize(
    "path", ["/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "./a", "a/../b", "", "x\0", "\0x"]
)
def test_columns_refuse_what_is_no_path_inside_a_tree(path: str) -> None:
    """No path that came over the wire leads out of a tree."""
    for paths in (["b", path], [path, "b"]):
        if paths[0] == "":  # the root may come first
            continue
        data = pack_paths(paths)
        with pytest.raises(ValueError):  # noqa: PT011 - what it says depends on the path
            unpack_paths(data)


@given(st.binary(max_size=200))
def test_columns_of_anything_are_a_tree_or_an_error(data: bytes) -> None:
    """Bytes that are no tree are refused as a value, and nothing else happens."""
    for unpack in (unpack_entries, unpack_paths):
        with contextlib.suppress(ValueError):
            unpack(data)
