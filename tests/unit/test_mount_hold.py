"""The hold on the mount of JuiceFS, where the keeper before was killed and its last words stay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atoll import process, settings
from atoll.node.shared import client
from atoll.node.shared.keeper import KEEPER_LOCK
from atoll.node.shared.mount_hold import MountHold

KEEPER = """
import fcntl, json, os, sys, time
from pathlib import Path
from atoll.node.shared import client
run = Path(sys.argv[1])
lock = open(run / sys.argv[2], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
time.sleep(0.5)
(run / "mounted").touch()
temporary = run / "new"
temporary.write_text(json.dumps({"state": "mounted", "writer": client.writer(os.getpid())}))
os.replace(temporary, run / client.STATE)
sys.stdin.read()
"""
"""Takes its lock, and mounts after a while, as a keeper on a slow machine."""


def test_words_of_a_killed_keeper_are_no_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lost its power has `mounted` in its file: the next hold waits for the next keeper."""
    options = settings.load(tmp_path)
    run = options.run_directory
    run.mkdir()
    killed = subprocess.Popen(["/bin/true"])
    killed.wait()
    facts = {**client.writer(1), "pid": killed.pid}
    (run / client.STATE).write_text(json.dumps({"state": "mounted", "writer": facts}))
    (run / KEEPER_LOCK).touch()
    line = [sys.executable, "-c", KEEPER, str(run), KEEPER_LOCK]
    keeper = subprocess.Popen(line, stdin=subprocess.PIPE)
    monkeypatch.setattr(process, "start_detached", lambda *_, **__: keeper.pid)
    hold = MountHold(options)
    try:
        hold.take()
        assert (run / "mounted").exists()
        assert client.is_current(client.mount_state(options))
    finally:
        hold.release()
        with keeper:
            assert keeper.stdin is not None
            keeper.stdin.close()
    assert not client.is_current(client.mount_state(options))


def test_a_number_of_before_a_restart_is_another_process() -> None:
    """The same number with another time of start, or at another start of the machine, has written nothing."""
    mine = client.writer(1)
    assert client.is_current({"writer": mine})
    assert not client.is_current({"writer": {**mine, "started": mine["started"] + 1}})
    assert not client.is_current({"writer": {**mine, "boot": "another"}})
    assert not client.is_current({"writer": {}})
    assert not client.is_current({})
    assert client.is_current({"pid": 1})
