"""A module of the user's with the name of another one: the error says so, or the worker uses it as the caller does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll import shadows
from atoll.sdk.modules.discover import Sources

from .bare_worker import BareWorker


def failing(directory: Path, *arguments: str) -> str:
    """Run a Python program that fails, and return its errors."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return done.stderr


@pytest.mark.parametrize("name", ["logging", "types", "dataclasses", "typing"])
@pytest.mark.parametrize(
    "program", ["from atoll import isolated", "import atoll; atoll.isolated", "import fal_serverless as m; m.isolated"]
)
def test_an_import_that_fails_for_a_namesake_of_python_s_says_so(name: str, program: str, tmp_path: Path) -> None:
    """The cause and the file are in the error's own text, as in that of Python 3.13."""
    (tmp_path / f"{name}.py").write_text("VALUE = 1\n")
    last = failing(tmp_path, "-c", program).splitlines()[-1]
    assert last.startswith("ImportError: `")
    assert "Error: " in last[12:]
    assert f"consider renaming '{tmp_path}/{name}.py'" in last
    assert f"standard library module named '{name}'" in last


def test_a_call_that_fails_for_a_namesake_says_so(tmp_path: Path) -> None:
    """Modules that are imported by the first call only."""
    (tmp_path / "pickle.py").write_text("VALUE = 1\n")
    program = "from atoll import isolated\nisolated(len)('')"
    assert f"consider renaming '{tmp_path}/pickle.py'" in failing(tmp_path, "-c", program)


def test_a_namesake_that_has_nothing_to_do_with_an_error_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error's text or frames must name it."""
    (tmp_path / "sched.py").write_text("def f(): raise AttributeError('own')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    import sched

    assert shadows.hint(AttributeError("'x' has no attribute 'y'")) == ""
    assert "sched.py" in shadows.hint(AttributeError("module 'sched' has no attribute 'scheduler'"))
    with pytest.raises(AttributeError) as caught:
        sched.f()  # type: ignore[attr-defined]
    assert "sched.py" in shadows.hint(caught.value)
    monkeypatch.delitem(sys.modules, "sched")


def function(source: str) -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space["f"]


def test_the_project_s_module_wins_over_one_that_the_worker_has_loaded(tmp_path: Path) -> None:
    """A module of Python, a package of the environment; a namespace package of both keeps the loaded part."""
    for name in ("env/package", "env/space", "own/package", "own/space"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "env/package/__init__.py").write_text("VALUE = 'theirs'\n")
    (tmp_path / "env/package/inner.py").write_text("VALUE = 'theirs'\n")
    (tmp_path / "own/package/__init__.py").write_text("VALUE = 'own'\n")
    (tmp_path / "own/package/inner.py").write_text("VALUE = 'own'\n")
    (tmp_path / "own/sched.py").write_text("VALUE = 'own'\n")
    (tmp_path / "env/space/a.py").write_text("import time\nTIME = time.time_ns()\n")
    (tmp_path / "own/space/b.py").write_text("VALUE = 'own'\n")
    load = function("def f():\n  import sched, package.inner, space.a\n  return space.a.TIME\n")
    use = function(
        "def f():\n  import sched, package.inner, space.a, space.b\n"
        "  return sched.VALUE, package.VALUE, package.inner.VALUE, space.b.VALUE, space.a.TIME\n"
    )
    given = [str(tmp_path / "own" / name) for name in ("sched.py", "package", "space")]
    with BareWorker(tmp_path / "worker", tmp_path / "env") as worker:
        time = worker.call(load)
        worker.install(Sources(use, given).current())
        assert worker.call(use) == ("own", "own", "own", "own", time)
