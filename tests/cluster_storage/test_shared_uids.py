"""Users have one host uid on all machines that share their volumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.errors import SandboxUnavailable, StateUnusable
from atoll.model.options.storage import StorageSettings
from atoll.sandbox.identity import Identities
from atoll.sandbox.shared_uids import SharedUids
from atoll.settings import SandboxSettings, Settings

ASSIGN = """
import json, sys
from pathlib import Path
from atoll.sandbox.shared_uids import SharedUids
uids = SharedUids(Path(sys.argv[1]))
sys.stdin.readline()
print(json.dumps([uids.assign(f"u-{number}", range(2000, 2100)) for number in json.loads(sys.argv[2])]))
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a plain user's functions have that user's uid")


def test_machines_that_assign_at_a_time_agree(mounts: tuple[Path, Path]) -> None:
    """Four processes on two mounts give each user one uid, and no two users the same."""
    orders = [list(range(12)), list(range(11, -1, -1)), list(range(6, 18)), list(range(17, 5, -1))]
    asking = [
        subprocess.Popen(
            [sys.executable, "-c", ASSIGN, str(mounts[number % 2]), json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number, order in enumerate(orders)
    ]
    for one in asking:
        assert one.stdin is not None
        one.stdin.write(b"\n")
        one.stdin.flush()
    found: dict[int, set[int]] = {}
    for one, order in zip(asking, orders, strict=True):
        out, _ = one.communicate(timeout=60)
        for number, uid in zip(order, json.loads(out), strict=True):
            found.setdefault(number, set()).add(uid)
    assert all(len(uids) == 1 for uids in found.values()), found
    assert len({uid for uids in found.values() for uid in uids}) == 18
    assert sorted(os.listdir(mounts[0] / "uids" / "numbers")) == sorted(str(*uids) for uids in found.values())
    assert [name for name in os.listdir(mounts[0] / "uids") if name.startswith(".")] == []


def test_a_number_is_never_given_again(tmp_path: Path) -> None:
    """A number whose user never came is not given to another, and a full range gives none."""
    uids = SharedUids(tmp_path)
    assert uids.assign("u-a", range(2000, 2002)) == 2000
    (tmp_path / "uids" / "users" / "u-a").unlink()  # as after a crash between the two names
    assert uids.assign("u-b", range(2000, 2002)) == 2001
    assert uids.assign("u-c", range(2000, 2002)) is None
    assert uids.find("u-b") == 2001
    assert uids.find("u-a") is None


def test_names_cannot_leave_their_directory(tmp_path: Path) -> None:
    """A user's name with slashes and dots is one name of a file."""
    uids = SharedUids(tmp_path)
    assert uids.assign("../../x", range(2000, 2002)) == 2000
    assert os.listdir(tmp_path / "uids" / "users") == ["..%2F..%2Fx"]


def test_a_damaged_claim_is_named(tmp_path: Path) -> None:
    """A claim that cannot be read is an error, and never another number."""
    uids = SharedUids(tmp_path)
    uids.assign("u-a", range(2000, 2002))
    (tmp_path / "uids" / "users" / "u-a").write_text("{}")
    with pytest.raises(StateUnusable, match="holds no user's uid"):
        uids.assign("u-a", range(2000, 2002))


def _identities(tmp_path: Path, home: str, first: int) -> Identities:
    (tmp_path / home).mkdir()
    storage = StorageSettings("path", str(tmp_path / "shared"))
    return Identities(
        Settings(tmp_path / home, storage=storage, sandbox=SandboxSettings(first_uid=first, uid_count=20))
    )


@as_root
def test_machines_with_one_range_agree_and_others_refuse(tmp_path: Path) -> None:
    """A machine whose range lacks a user's uid refuses by name; the machine's own names do not take users' numbers."""
    (tmp_path / "shared").mkdir()
    one, two = (_identities(tmp_path, home, 71_000) for home in ("one", "two"))
    apart = _identities(tmp_path, "apart", 72_000)
    assert one.user("u-a").uid == two.user("u-a").uid == 71_001
    assert two.user("u-b").uid == one.user("u-b").uid == 71_002
    assert {one.carrier().uid, two.carrier().uid} == {71_019}
    with pytest.raises(SandboxUnavailable, match="not in this one's range"):
        apart.user("u-a")
    for number in range(3, 19):
        one.user(f"u-{number}")
    with pytest.raises(SandboxUnavailable, match="belong to users already"):
        one.user("u-last")
