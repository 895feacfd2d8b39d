"""Which host ids functions get."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from atoll.errors import SandboxUnavailable, StateUnusable
from atoll.model.mounts import Identity
from atoll.sandbox.identity import PREFERRED_UID, Identities, find_range, give
from atoll.settings import SandboxSettings, Settings

pytestmark = pytest.mark.as_user

EVERYTHING = range(4294967295)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives users ids of their own")


@pytest.mark.parametrize(
    ("what", "configured", "mapped", "subordinate", "expected"),
    [
        ("a bare machine", (0, 0), [EVERYTHING], [], range(PREFERRED_UID, PREFERRED_UID + 65536)),
        ("root's own range", (0, 0), [EVERYTHING], [("root", range(100000, 165536))], range(100000, 165536)),
        ("the settings win", (5000, 10), [EVERYTHING], [("root", range(100000, 165536))], range(5000, 5010)),
        ("a container of 65,536 ids", (0, 0), [range(65536)], [], range(40000, 60000)),
        (
            "what belongs to another user's containers is left alone",
            (0, 0),
            [range(65536)],
            [("alice", range(40000, 50000))],
            range(20000, 30000),
        ),
        ("two pieces", (0, 0), [range(1), range(1000, 3000)], [], range(1000, 3000)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_range_is_found(what: str, configured, mapped, subordinate, expected: range) -> None:  # type: ignore[no-untyped-def]
    """The range is mapped here, and nobody else's."""
    assert find_range(configured=configured, mapped=mapped, subordinate=subordinate) == expected, what


@pytest.mark.parametrize(
    ("configured", "mapped"),
    [((0, 0), [range(1)]), ((0, 0), []), ((70000, 10), [range(65536)]), ((1, 10), [EVERYTHING])],
)
def test_a_range_that_is_not_there_is_an_error(configured: tuple[int, int], mapped: list[range]) -> None:
    """Where root has no other uids, or the configured ones are not mapped, the error says what to change."""
    with pytest.raises(SandboxUnavailable) as caught:
        find_range(configured=configured, mapped=mapped, subordinate=[])
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root never runs functions as itself")
def test_a_plain_user_is_every_identity(tmp_path: Path) -> None:
    """Without root there is one identity: the user's own."""
    found = Identities(Settings(tmp_path))
    assert found.user("a") == found.user("b") == found.builder() == Identity(os.getuid(), os.getgid())


@needs_root
def test_identities_are_distinct_and_stay(tmp_path: Path) -> None:
    """Each user and the builder has a uid of its own, also in the next daemon."""
    settings = Settings(tmp_path)
    first = Identities(settings)
    people = {name: first.user(name) for name in ("a", "b", "c")}
    uids = {identity.uid for identity in people.values()} | {first.builder().uid}
    assert len(uids) == 4
    assert 0 not in uids
    again = Identities(settings)
    assert {name: again.user(name) for name in ("c", "b", "a")} == people


def _assign(home: str, names: list[str], results: multiprocessing.Queue[dict[str, int]]) -> None:
    found = Identities(Settings(Path(home)))
    results.put({name: found.user(name).uid for name in names})


@needs_root
def test_identities_are_assigned_once_whoever_races(tmp_path: Path) -> None:
    """Processes that assign at the same time agree, and no uid is given twice."""
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[dict[str, int]] = context.Queue()
    names = [f"user{number}" for number in range(12)]
    racers = [
        context.Process(target=_assign, args=(str(tmp_path), names[shift:] + names[:shift], results))
        for shift in range(4)
    ]
    for racer in racers:
        racer.start()
    found = [results.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    assert all(one == found[0] for one in found)
    assert len(set(found[0].values())) == len(names)


@needs_root
def test_a_range_that_is_used_up_is_an_error(tmp_path: Path) -> None:
    """When every uid is taken, the error names the option to enlarge."""
    found = Identities(Settings(tmp_path, sandbox=SandboxSettings(first_uid=PREFERRED_UID, uid_count=3)))
    assert {found.builder().uid, found.user("a").uid, found.user("b").uid} == set(
        range(PREFERRED_UID, PREFERRED_UID + 3)
    )
    with pytest.raises(SandboxUnavailable, match="belong to users") as caught:
        found.user("c")
    assert "uid_count" in caught.value.hint


@needs_root
@pytest.mark.parametrize("text", ["{", "[]", '{"a": "x"}'])
def test_a_damaged_file_is_an_error_and_is_kept(tmp_path: Path, text: str) -> None:
    """Assignments that cannot be read are never overwritten: users would change places."""
    path = tmp_path / "identities.json"
    path.write_text(text)
    with pytest.raises(StateUnusable):
        Identities(Settings(tmp_path)).user("a")
    assert path.read_text() == text


@needs_root
def test_the_file_maps_names_to_uids(tmp_path: Path) -> None:
    """What is kept is a plain JSON object, and no temporary file stays."""
    uid = Identities(Settings(tmp_path)).user("a").uid
    assert json.loads((tmp_path / "identities.json").read_text()) == {"a": uid}
    assert sorted(os.listdir(tmp_path)) == ["identities.json", "identities.lock"]


def test_give_sets_owner_and_mode(tmp_path: Path) -> None:
    """A directory that is given away has the mode, and as root the owner."""
    path = tmp_path / "x"
    path.mkdir()
    identity = (
        Identity(PREFERRED_UID + 5, PREFERRED_UID + 5) if os.geteuid() == 0 else Identity(os.getuid(), os.getgid())
    )
    give(path, identity, 0o700)
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (identity.uid, 0o700)
