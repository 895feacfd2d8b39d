"""What functions do in the target while it is synced, and what they find there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.storage.sync.client import SyncOptions

from ..waiting import soak
from .test_sync import Peers, peers, snapshot, source

__all__ = ["peers", "source"]

SYNCS = soak(6, 40)

WRITER = """
import os, select, sys
root, count = sys.argv[1], 0
print("ready", flush=True)
while not select.select([0], [], [], 0)[0]:
    # What the source does not have and may go: all of it may fail, since a sync takes it away at any moment.
    try:
        os.makedirs(root + "/theirs/d", exist_ok=True)
        with open(root + f"/theirs/d/{count % 7}", "w") as file: file.write("theirs")
        with open(root + "/both", "r+") as file: file.write("mine!")
        with open(root + "/d/new", "w") as file: file.write("new")
        os.replace(root + "/d/new", root + "/d/replaced")
        os.chmod(root + "/d", 0o700 + count % 2 * 0o55)
        os.symlink("/etc", root + f"/d/link-{count % 3}")
        os.rename(root + "/d", root + "/e")
        os.rename(root + "/e", root + "/d")
    except OSError:
        pass
    # What is excluded: nothing is lost, and what was there before a sync is there at every moment of it.
    with open(root + f"/out/{count % 400}", "x" if count < 400 else "w") as file: file.write(str(count))
    with open(root + "/out/log", "a") as file: file.write(f"{count}\\n")
    while True:
        try:
            with open(root + "/out/.new", "w") as file: file.write(str(count))
            os.replace(root + "/out/.new", root + "/out/last")
            break
        except FileNotFoundError:  # made in the old tree, and not carried over yet
            pass
    count += 1
print(count)
"""


def test_a_function_that_writes_into_the_target_all_the_time(peers: Peers, source: Path) -> None:
    """What is excluded is not lost, and what of it was there before is there at every moment; the rest is the source's
    after the next sync."""
    options = SyncOptions(exclude=("out/",))

    def write(generation: int) -> None:
        (source / "d").mkdir(exist_ok=True)
        for name in ("both", "d/replaced", *(f"d/{number}" for number in range(20)))[generation % 3 :]:
            (source / name).write_text(f"{generation}")

    write(0)
    peers.sync(source, options=options)
    target = peers.data / "t"
    (target / "out").mkdir()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    client, _ = peers.start()
    syncs = 0
    with client:
        for generation in range(1, 10 * SYNCS):
            if syncs == SYNCS:
                break
            write(generation)
            try:
                client.sync(str(source), "t", options)
                syncs += 1
            except OSError as error:  # the writer never lets the directory be as it was scanned
                assert "sync again" in str(getattr(error, "hint", "")), error  # noqa: PT017
        out, err = writer.communicate("stop")
        assert writer.returncode == 0, err
        client.sync(str(source), "t", options)
    assert syncs == SYNCS
    count = int(out)
    assert count > 20
    assert (target / "out/log").read_text() == "".join(f"{number}\n" for number in range(count))
    assert (target / "out/last").read_text() == str(count - 1)
    expected = {f"{number % 400}": str(number) for number in range(count)}
    found = {path.name: path.read_text() for path in (target / "out").iterdir() if path.name.isdigit()}
    assert found == expected
    subprocess.run(["rm", "-rf", str(target / "out")], check=True)
    os.utime(target, ns=(0, source.stat().st_mtime_ns))
    assert snapshot(target) == snapshot(source)
    assert not peers.leftovers()


READER = """
import os, select, sys
root, names, rounds, changes = sys.argv[1], sys.argv[2:], 0, 0
print("ready", flush=True)
last = ""
while not select.select([0], [], [], 0)[0]:
    for name in names:
        text = open(os.path.join(root, name)).read()
        changes += text != last
        last = text
    held = os.open(os.path.join(root, "d"), os.O_RDONLY)
    found = {open(os.open(name, os.O_RDONLY, dir_fd=held)).read() for name in ("x", "y", "e/z")}
    os.close(held)
    assert len(found) == 1, found
    rounds += 1
print(rounds)
"""


@pytest.mark.parametrize("rest", [1, 800])
def test_a_directory_that_is_held_is_one_generation(peers: Peers, source: Path, rest: int) -> None:
    """Changes below one directory are seen together by who holds it open, and every lookup by path finds its file;
    what is beside it is not even linked."""
    for number in range(rest):
        path = source / f"rest/{number % 10}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("rest")

    def write(generation: int) -> None:
        for name in ("d/x", "d/y", "d/e/z"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(f"{generation}")

    write(0)
    peers.sync(source)
    before = (peers.data / "t/rest/0/0").stat()
    names = ["d/x", "d/y", "d/e/z", "rest/0/0"]
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(peers.data / "t"), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    client, _ = peers.start()
    with client:
        for generation in range(1, 20):
            write(generation)
            client.sync(str(source), "t", SyncOptions())
    out, err = reader.communicate("stop")
    assert reader.returncode == 0, err
    assert int(out) > 3
    after = (peers.data / "t/rest/0/0").stat()
    assert (after.st_ino, after.st_ctime_ns, after.st_nlink) == (before.st_ino, before.st_ctime_ns, 1)
