"""`atoll doctor` on this machine, where sandboxes work, and where they do not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from atoll.cli import doctor
from atoll.model.findings import Finding
from atoll.sandbox.programs import find_bwrap

from .conftest import ROOT, Someone

pytestmark = pytest.mark.as_user

NAMES = {
    *("state", "disk space", "atomic exchange", "hard links", "reflinks", "bubblewrap", "namespaces", "mounts"),
    *("sandbox", "system call filter", "no privileges", "outbound network", "memory limits", "FUSE", "uv"),
    *("CPU limits", "process limits", "GPUs", "snapshots", "workers apart", "signals apart", "end with the daemon"),
    *("process ids apart", "settings"),
}
CODE = "import sys; from atoll.cli.doctor import doctor; sys.exit(doctor(json=len(sys.argv) > 1))"


def examine(someone: Someone, *arguments: str, around: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*someone.prefix, *around, someone.python, "-c", CODE, *arguments],
        env=someone.environment | {"ATOLL_HOME": str(someone.home)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_ability_is_tried(someone: Someone) -> None:
    """Where sandboxes work the doctor is content, and what does not work carries its loss and its fix."""
    done = examine(someone, "json")
    found = json.loads(done.stdout)
    by_name = {ability["name"]: ability for ability in found["abilities"]}
    assert set(by_name) - {"separate users"} == NAMES
    assert ("separate users" in by_name) == someone.as_root
    failing = [name for name, ability in by_name.items() if ability["needed"] and not ability["works"]]
    assert failing == [], done.stdout
    assert (done.returncode, found["ok"]) == (0, True)
    for ability in by_name.values():
        assert ability["works"] or (ability["loses"] and ability["fix"]), ability
    assert not [path for path in someone.home.iterdir() if path.name.startswith(".doctor-")]


def test_promises_that_an_old_kernel_does_not_keep_are_named(someone: Someone) -> None:
    """Without Landlock two findings say so with the fix, and sandboxes still end with the daemon."""
    done = examine(someone, "json", around=(someone.python, str(ROOT / "tests/security/old_kernel.py")))
    by_name = {ability["name"]: ability for ability in json.loads(done.stdout)["abilities"]}
    assert by_name["end with the daemon"]["works"], done.stdout
    for name in ("workers apart", "signals apart"):
        assert by_name[name]["detail"].startswith("not held: no Landlock")
        assert "another worker" in by_name[name]["detail"]
        assert "landlock" in by_name[name]["fix"]


def test_the_table_names_what_is_lost_and_the_fix(someone: Someone) -> None:
    """Without namespaces the exit status is 1, and the table gives the loss and the fix."""
    around = [find_bwrap(), "--dev-bind", "/", "/"]
    around += ["--cap-drop", "ALL"] if someone.as_root else ["--unshare-user", "--disable-userns"]
    done = examine(someone, around=(*around, "--"))
    assert done.returncode == 1, done.stderr
    assert "without namespaces" in done.stdout
    assert ": no function can run\n" in done.stdout
    assert "fix: " in done.stdout
    assert "something that Atoll needs does not work" in done.stdout


def test_losses_come_in_order_and_each_fix_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The greatest loss comes first; a fix of several abilities is named once; each ability that is known has a place."""
    found = [
        Finding("reflinks", False, False, "no", "copies", "use btrfs"),
        Finding("CPU limits", False, False, "no cgroup", "fair shares", "delegate"),
        Finding("uv", True, True, "uv 1, `/very/long/path/to/uv`"),
        Finding("FUSE", False, False, "no device", "mounts", "modprobe"),
        Finding("memory limits", False, False, "no cgroup", "hard limits", "delegate"),
        Finding("namespaces", True, False, "refused", "no function can run", "sysctl"),
        Finding("mounts", True, False, "refused", "no function can run", "sysctl"),
    ]
    assert doctor._tell(found, json=False, subject="Atoll") == 1
    lines = capsys.readouterr().out.splitlines()
    order = [line.strip() for line in lines if line.strip() in {doctor.CANNOT, *doctor.LOSSES, doctor.OPTIONAL}]
    assert order == [doctor.CANNOT, *doctor.LOSSES, doctor.OPTIONAL]
    for fix in ("delegate", "sysctl", "modprobe", "use btrfs"):
        assert [line for line in lines if fix in line] == [f"  fix: {fix}"]
    assert "  without namespaces, mounts: no function can run" in lines
    assert [line.split() for line in lines if line.startswith("ok")] == [["ok", "uv", "uv", "1"]]
    assert {name for names in doctor.LOSSES.values() for name in names} <= NAMES


def test_broken_settings_are_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a mistake is named with its line, and the rest of the machine is still tried."""
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path))
    (tmp_path / "settings.toml").write_text("[pool]\n\nslost = 3\n")
    chosen, (found,) = doctor._settings()
    assert (chosen.home, found.works, found.needed) == (tmp_path, False, True)
    assert "settings.toml`, line 3 has an unknown option `pool.slost`" in found.detail
    assert found.fix == "did you mean `slots`?"
