"""A program in the place of `atoll` on a machine: joins at once, runs a node that does nothing, beside a daemon.

    fake_atoll.py node join URL --name NAME ... ; fake_atoll.py node run

It writes its arguments, input and environment into files of `ATOLL_HOME`, and leaves a process that has left its parent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

home = Path(os.environ["ATOLL_HOME"])
if sys.argv[2] == "join":
    with (home / "joins").open("a") as file:
        file.write(json.dumps([*sys.argv[1:], sys.stdin.read()]) + "\n")
    sys.exit(0)
if (home / "removed").exists():
    sys.exit(3)
(home / "environment.json").write_text(json.dumps(dict(os.environ)))
daemon = subprocess.Popen(["sleep", "infinity"], start_new_session=True)
(home / "pids").write_text(f"{os.getpid()} {daemon.pid}")
print("runs", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    time.sleep(3600)
