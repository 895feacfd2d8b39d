"""Functions and tracebacks travel with every release of cloudpickle that the dependency's range allows."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from .bare_worker import run_script

PROGRAM = """
import sys, tempfile, traceback
from pathlib import Path

from atoll.payload import pickling
from tests.unit.bare_worker import BareWorker

def helper(n):
    return 10 / n

class Kept:
    __slots__ = ("n",)

    def double(self):
        return self.n * 2

class Stubborn(type):
    def __setattr__(cls, name, value):
        if sys.flags.isolated:
            raise AttributeError("no " + name)
        super().__setattr__(name, value)

class Refused(metaclass=Stubborn):
    field = 1

def works(n):
    kept = Kept()
    kept.n = n
    return kept.double() + helper(5)

def fails():
    helper(0)

def facts():
    code = helper.__code__
    return code.co_firstlineno, code.co_qualname, list(code.co_positions()), code.co_flags, code.co_linetable

def shown(function, *arguments):
    try:
        print(worker.call(function, *arguments))
    except Exception:
        print(traceback.format_exc())

with tempfile.TemporaryDirectory() as directory, BareWorker(Path(directory)) as worker:
    print(pickling.cloudpickle().__file__)
    print(worker.call(facts) == facts())
    shown(works, 3)
    shown(fails)
    shown(lambda: Refused.field)
"""


@pytest.mark.parametrize("version", ["==3.1.0", "==3.1.3", "locked", "newest"])
def test_each_release_keeps_file_names_and_stays_out_of_tracebacks(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest, the locked and the newest release, and 3.1.3, which drops the file names of functions."""
    if version != "locked":
        library = tmp_path / "library"
        wanted = f"cloudpickle{'>=3.1' if version == 'newest' else version}"
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(library),
            wanted,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            pytest.skip(f"no package index: {done.stderr[-200:]}")
        monkeypatch.setenv("PYTHONPATH", str(library))
    printed = run_script(tmp_path, PROGRAM)
    private, same, works, *tracebacks = printed.splitlines()
    if version == "locked":
        assert Path(private).parent == importlib.metadata.distribution("cloudpickle").locate_file("cloudpickle")
    else:
        assert Path(private).parent == library / "cloudpickle"
    assert same == "True"  # first line, name and columns
    assert float(works) == 8
    text = "\n".join(tracebacks)
    script = str(tmp_path / "program.py")
    for line, name, source in ((9, "helper", "return 10 / n"), (32, "fails", "helper(0)")):
        assert f'File "{script}", line {line}, in {name}\n    {source}' in text
    assert f'File "{script}", line 20, in __setattr__' in text
    assert "cloudpickle" not in text
    assert "<dynamic-code>" not in text
