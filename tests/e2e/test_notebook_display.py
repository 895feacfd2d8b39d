"""The display in a notebook: lines that stay alone, in the streams of a kernel, which are no terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from ..conftest import Home
from ..environments import Machine

KERNEL = """
import contextlib, io, json, sys
from IPython.core.interactiveshell import InteractiveShell

class OutStream(io.TextIOBase):
    encoding = "UTF-8"

    def __init__(self, name):
        self.name, self.written = name, []

    def write(self, text):
        self.written.append(text)
        return len(text)

    def isatty(self):
        return False

OutStream.__module__ = "ipykernel.iostream"
out, err = OutStream("stdout"), OutStream("stderr")
shell = InteractiveShell.instance()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    done = [shell.run_cell(cell).success for cell in json.loads(sys.argv[1])]
print(json.dumps([done, "".join(out.written), "".join(err.written)]))
"""

CELLS = [
    """
import time
from atoll import isolated
from atoll.sdk.display import call_lines, map_bar, usage
call_lines.LONG_SECONDS = map_bar.SHOW_SECONDS = 0.0
usage.RECORD_SECONDS = 60.0
""",
    """
@isolated(requirements=["./surfboard-1"], network="none", keep_alive=60)
def first():
    return "hello"
print(first())
""",
    """
@isolated(network="none", keep_alive=60)
def score(n):
    time.sleep(0.2)
    if n == 2:
        raise ValueError("no score")
    return n
call_lines.LONG_SECONDS = 60.0
score(1)
list(score.map(range(2)))
list(score.map(range(4), return_exceptions=True))
print(list(score.map(range(2), progress="scores")))
""",
    """
@isolated(network="none", keep_alive=60)
def train():
    print("epoch 1")
    time.sleep(0.5)
call_lines.LONG_SECONDS = 0.3
train()
""",
]


def test_a_kernel_gets_plain_lines(atoll_home: Home, tmp_path: Path) -> None:
    """A build's begin and end, a long call, a `map`: one line each; no escape code, nothing that is written over."""
    Machine.tree(cast("Any", None), "surfboard", place=tmp_path)
    env = {"TERM": "xterm-256color", "IPYTHONDIR": str(tmp_path / "ipython")}
    run = atoll_home.python("-c", KERNEL, json.dumps(CELLS), cwd=tmp_path, env=env)
    done, out, err = json.loads(run.stdout.splitlines()[-1])
    assert done == [True] * len(CELLS), (out, err)
    assert (out, "\x1b" in err, "\r" in err) == ("hello\n[0, 1]\nepoch 1\n", False, False)
    patterns = (
        r"atoll: Building environment [0-9a-f]{8} with .*",
        r"built env [0-9a-f]{8} · 1 package · [\d.]+ KiB · \d+ s",
        r"✓ first · .*peak \d+ MiB · id [0-9a-f]{8}",
        r"✗ score · 4 calls · 1 failed · [\d.]+ s",
        r"✓ scores · 2 calls · [\d.]+ s",
        r"✓ train · .*peak \d+ MiB · id [0-9a-f]{8}",
    )
    lines = [line for line in err.splitlines() if "`pasta`" not in line]
    assert len(lines) == len(patterns), err
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), err
