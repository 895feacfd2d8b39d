"""Quotas of volumes: measured ones here, those of the kernel in a Linux of their own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import LocalHost, Volume, errors, isolated, sync_dir
from atoll.cli.main import run
from atoll.model.quota import Quota
from atoll.node.quotas import kernel, quotas
from atoll.storage.files.usage_walk import measure
from atoll.storage.peer.quota_guard import QuotaGuard
from atoll.storage.protocol.replies import translated
from atoll.wire.frames import Message
from tests.conftest import Home, find_tool, own_home
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with own_home() as made:
        yield made


@pytest.fixture
def host(home: Home) -> Iterator[LocalHost]:
    """A host whose volume is empty and has no quota."""
    made = LocalHost(home.path)
    limit(made, 0, 0)
    with Volume(made) as volume:
        for name in volume.listdir():
            if name != ".snapshots":
                volume.remove(name, recursive=True)
    yield made
    made.close()


def limit(host: LocalHost, bytes_: int, files: int) -> Quota:
    return Quota.from_data(host.request("quotas.set", {"user": "local", "bytes": bytes_, "files": files}))


def say(text: str) -> str:
    return text


def test_peers_refuse_what_adds_and_serve_what_removes(host: LocalHost, tmp_path: Path) -> None:
    """Over the quota, contents, directories, copies and syncs fail by name; looking and removing go on."""
    with Volume(host) as volume:
        volume.write_bytes("large", os.urandom(2 * MIB))
        volume.write_bytes("small", b"x")
    limit(host, MIB, 0)
    (tmp_path / "one").write_bytes(b"1")
    with Volume(host) as volume:
        for wish in (
            lambda: volume.write_bytes("more", b"x" * 100),
            lambda: volume.mkdir("directory"),
            lambda: volume.copy("small", "other"),
            lambda: volume.snapshot("kept"),
            lambda: volume.open("more", "wb"),
        ):
            with pytest.raises(errors.QuotaExceeded, match=r"2\.0 MiB of 1\.0 MiB") as caught:
                wish()
            assert isinstance(caught.value, OSError)
            assert caught.value.details["bytes"] == MIB
            assert caught.value.details["used_bytes"] > 2 * MIB
        with pytest.raises(errors.QuotaExceeded):
            sync_dir(tmp_path, "/data/target", host=host)
        assert volume.read_bytes("small") == b"x"
        volume.remove("large")
        volume.write_bytes("more", b"x" * 100)
        assert volume.read_bytes("more") == b"x" * 100


def test_contents_that_do_not_fit_end_where_they_are(host: LocalHost) -> None:
    """A file larger than the room is refused while it comes, and the connection serves the next request."""
    limit(host, 3 * MIB, 0)
    with Volume(host) as volume:
        with pytest.raises(errors.QuotaExceeded, match="does not fit"):
            volume.write_bytes("large", os.urandom(16 * MIB))
        assert not volume.exists("large")
        volume.write_bytes("small", b"y")
        assert volume.listdir() == [".snapshots", "small"] or volume.listdir() == ["small"]


def test_calls_of_a_user_who_is_over_are_refused_until_something_is_removed(host: LocalHost) -> None:
    """The refusal has use and limit; a removal outside of functions lets calls go on."""
    f = isolated(host=host, network="none", keep_alive=0)(say)
    with Volume(host) as volume:
        volume.write_bytes("large", os.urandom(MIB))
    limit(host, MIB, 0)
    with pytest.raises(errors.QuotaExceeded, match="atoll data rm"):
        f("never")
    with Volume(host) as volume:
        volume.remove("large")

    def again() -> str:
        with contextlib.suppress(errors.QuotaExceeded):  # file systems count freed blocks a moment later
            return f("again")
        return ""

    assert until(again) == "again"


def test_a_call_after_one_that_wrote_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small volume is measured before each call where that is due; no earlier figure lets a call through."""
    monkeypatch.setattr(quotas, "REST", 0.0)
    monkeypatch.setattr(quotas, "QUICK_SECONDS", 60.0)
    monkeypatch.setattr(quotas.Quotas, "mechanism", None)
    (tmp_path / "volumes" / "ann").mkdir(parents=True)
    file = tmp_path / "volumes" / "ann" / "file"
    said: list[str] = []

    async def calls() -> None:
        measured = quotas.Quotas(tmp_path, tmp_path / "volumes", lambda _: pytest.fail("no kernel"))
        await measured.set("ann", MIB, 0)
        await measured.before_call("ann", said.append)
        file.write_bytes(os.urandom(MIB * 9 // 10))
        await measured.before_call("ann", said.append)
        assert ["% full" in line for line in said] == [True]
        file.write_bytes(os.urandom(2 * MIB))
        with pytest.raises(errors.QuotaExceeded):
            await measured.before_call("ann", said.append)
        await measured.close()

    asyncio.run(calls())


def test_warnings_come_once_for_each_share(host: LocalHost, capfd: pytest.CaptureFixture[str]) -> None:
    """At 80 and at 95 per cent the caller reads one line each, and again after the use has fallen."""
    f = isolated(host=host, network="none", keep_alive=0)(say)
    with Volume(host) as volume:
        volume.write_bytes("large", os.urandom(MIB))
        used = volume.quota().used_bytes
        assert volume.quota().kind == "none"
    for bytes_, line in ((used * 2, ""), (int(used / 0.85), "85% full"), (int(used / 0.97), "97% full")):
        limit(host, bytes_, 0)
        capfd.readouterr()
        f("x")
        said = capfd.readouterr().err
        assert line in said
        assert bool(line) == ("full" in said)
        f("y")
        assert "full" not in capfd.readouterr().err


def test_the_command_line_tells_the_use_and_who_enforces_it(
    home: Home, host: LocalHost, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`atoll data usage` names the mechanism."""
    monkeypatch.setenv("ATOLL_HOME", str(home.path))
    limit(host, 50 * 10**9, 1000)
    assert run(["data", "usage"]) == 0
    said = capfd.readouterr().out
    assert "of 46.6 GiB" in said
    assert "of 1,000 files" in said
    assert "measured" in said
    assert run(["data", "usage", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["kind"] == "measured"
    assert json.loads((home.path / "quotas.json").read_text()) == {"local": {"bytes": 50 * 10**9, "files": 1000}}


def test_functions_do_not_set_quotas(host: LocalHost) -> None:
    """Neither code in a sandbox nor a user without rights changes a limit."""

    def change(outside: LocalHost) -> Any:
        return outside.request("quotas.set", {"user": "local", "bytes": 0, "files": 0})

    with pytest.raises(errors.ResourcesUnavailable):
        isolated(host=host, network="none")(change)(host)
    for wrong in ({"bytes": -1}, {"bytes": "1"}, {"files": 1 << 61}, {"user": "../x", "bytes": 1}):
        with pytest.raises(errors.AtollError):
            host.request("quotas.set", {"user": "local", "bytes": 0, "files": 0} | wrong)


# --- parts ----------------------------------------------------------------------------------------------------------


def test_a_walk_counts_as_the_disk_does(tmp_path: Path) -> None:
    """Blocks and not lengths, files with several names once, past no symlink; it is cut off by its time."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "below" / "file", tmp_path / "name")
    (tmp_path / "leads").symlink_to("/")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    found = measure(tmp_path, 60)
    assert found.complete
    assert found.files == 5
    assert 100_000 <= found.bytes < MIB
    for number in range(600):
        (tmp_path / f"f{number}").touch()
    assert not measure(tmp_path, -1.0).complete


def test_a_deep_tree_is_walked_to_its_end(tmp_path: Path) -> None:
    """Whoever nests 300 directories neither hides files below them nor takes all descriptors."""
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(len(os.listdir("/proc/self/fd")) + 100, most[0]), most[1]))
    try:
        assert measure(top, 60)[1:3] == (301, True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
        subprocess.run(["rm", "-rf", str(top)], check=True)  # Python's own removal nests too


def guarded(root: Path, quota: Quota) -> QuotaGuard:
    """Return a guard that has read its limits."""
    with open(root / "sheet", "w+b") as file:
        file.write(json.dumps(quota.to_data()).encode())
        file.flush()
        guard = QuotaGuard(str(root), file.fileno())
        guard.before(Message({"type": "mkdir"}, []))
    return guard


def test_refusals_of_the_kernel_have_the_quotas_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext4 says EDQUOT; XFS says ENOSPC for a project, which is the quota where the project is full, else the disk."""
    guard = guarded(tmp_path, Quota(20 * MIB, 100, kind="project"))
    assert isinstance(guard.named(OSError(errno.EDQUOT, "quota")), errors.QuotaExceeded)
    full = os.statvfs_result((4096, 4096, 5120, 0, 0, 100, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    found = guard.named(OSError(errno.ENOSPC, "full"))
    assert isinstance(found, errors.QuotaExceeded)
    assert "20.0 MiB of 20.0 MiB" in str(found)
    large = os.statvfs_result((4096, 4096, 1 << 30, 0, 0, 1 << 30, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: large)
    assert isinstance(translated(guard.named(OSError(errno.ENOSPC, "full")), "cannot write"), errors.DiskFull)
    user = guarded(tmp_path, Quota(20 * MIB, kind="user"))
    assert isinstance(translated(user.named(OSError(errno.ENOSPC, "full")), "cannot write"), errors.DiskFull)
    assert isinstance(guard.named(OSError(errno.EPERM, "no")), PermissionError)


def test_a_file_system_with_quotas_is_found_by_its_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options and a device decide, and the kernel must answer; user quotas are taken before those of projects."""
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    monkeypatch.setattr(kernel, "_answers", lambda quota: quota.device == "/dev/a b")
    line = "36 35 {} / /mnt rw,noatime shared:1 - {} {} {}"
    for options, expected in (
        ("rw,prjquota", kernel.PROJECT),
        ("rw,usrquota,prjquota", kernel.USER),
        ("rw,usrquota", kernel.USER),
        ("rw", None),
    ):
        found = kernel.find(tmp_path, line.format(number, "ext4", r"/dev/a\040b", options))
        assert (found.kind if found is not None else None) == expected
    assert kernel.find(tmp_path, line.format("0:0", "ext4", "/dev/a", "rw,usrquota")) is None
    assert kernel.find(tmp_path, line.format(number, "ext4", "/dev/other", "rw,usrquota")) is None
    assert kernel.find(tmp_path, line.format(number, "tmpfs", "tmpfs", "rw,usrquota")) is None


def test_quotas_in_words() -> None:
    """Shares and texts."""
    quota = Quota(1000, 10, 805, 2)
    assert (quota.per_cent, quota.exceeded) == (80, False)
    assert Quota(1000, 10, 5, 10).exceeded
    assert Quota(used_bytes=5, used_files=1).text() == "5 B, 1 files, no quota"
    assert Quota.from_data({**quota.to_data(), "newer": 1}) == quota


_INIT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t tmpfs tmpfs /mnt; mount -t devtmpfs dev /dev 2>/dev/null
{python} {program} {source} {modules}
sync; echo o > /proc/sysrq-trigger; sleep 5
"""


@pytest.mark.root
def test_quotas_of_the_kernel_in_a_linux_of_its_own(tmp_path: Path) -> None:
    """User and project quotas on ext4 and XFS refuse bytes and files, by Debian's `user-mode-linux`.

    The guard names the refusals, a removal works, and limits that are lifted no longer count.
    """
    linux, mkfs = find_tool("linux.uml"), find_tool("mkfs.xfs")
    if linux is None or mkfs is None or find_tool("mkfs.ext4") is None:
        pytest.skip("needs Debian's packages user-mode-linux, xfsprogs and e2fsprogs")
    modules = Path(os.path.realpath(linux)).parents[1] / "lib" / "uml" / "modules"
    images = {"ext4": tmp_path / "ext4", "xfs": tmp_path / "xfs"}
    for image, size in zip(images.values(), (128 * MIB, 320 * MIB), strict=True):
        with open(image, "wb") as file:
            file.truncate(size)
    quotas = ["-O", "quota,project", "-E", "quotatype=usrquota:prjquota"]
    subprocess.run([str(find_tool("mkfs.ext4")), "-q", *quotas, str(images["ext4"])], check=True)
    subprocess.run([mkfs, "-q", str(images["xfs"])], check=True)
    init = tmp_path / "init"
    program = Path(__file__).with_name("kernel_quotas.py")
    source = Path(kernel.__file__).parents[3]
    init.write_text(_INIT.format(python=sys.executable, program=program, source=source, modules=modules))
    init.chmod(0o755)
    done = subprocess.run(
        [
            linux,
            "mem=256M",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            f"init={init}",
            f"ubdb={images['ext4']}",
            f"ubdc={images['xfs']}",
            "con=null",
            "con0=null,fd:1",
            "con1=null,fd:1",
            "quiet",
            f"uml_dir={tmp_path}",
            "umid=quotas",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=500,
        check=False,
    )
    lines = [line.partition("FACTS ")[2] for line in done.stdout.splitlines() if "FACTS " in line]
    facts = {(one.pop("fs"), one.pop("options")): one for one in map(json.loads, lines)}
    assert len(facts) == 6, done.stdout[-3000:]
    for kind in images:
        assert facts[kind, ""] == {"found": None}
        for options, found in (("usrquota", "user"), ("prjquota", "project")):
            one = facts[kind, options]
            refusal = "ENOSPC" if (kind, found) == ("xfs", "project") else "EDQUOT"
            assert (one["found"], one["large"], one["many"]) == (found, refusal, refusal)
            assert 19 * MIB < one["used"] <= 20 * MIB
            assert (one["named"], one["removed"], one["files"], one["lifted"]) == ("QuotaExceeded", 0, 200, 0)


def test_a_volume_without_a_quota_says_so_once(
    atoll_home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`atoll data usage` has one line then."""
    monkeypatch.setenv("ATOLL_HOST", "local")
    assert run(["data", "usage"]) == 0
    assert capfd.readouterr().out.count("no quota") == 1
