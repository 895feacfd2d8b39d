"""Packages that new workers find imported: learned from earlier calls or named, and refused where that is unsafe."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atoll import isolated

from ..conftest import Home

SECONDS = 60.0

MODULES = {
    "heavy": "import heavy_part, time\nloaded_at = time.monotonic_ns()\n",
    "heavy_part": "",
    "threads": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
    "sockets": "import socket\nopen_socket = socket.socket()\n",
    "children": "import subprocess\nchild = subprocess.Popen(['sleep', '600'])\n",
    "crashes": "import os\nif os.getppid() != 1 and 'ATOLL_WORKER_ID' not in os.environ: os._exit(3)\n",
    "common": "here = 'the environment'\n",
    "moves": "import os\nos.chdir('/')\n",
    "patches": "import common\ncommon.here = 'patched'\n",
    "reads": "import os\nmode = os.environ.get('MODE', 'default')\n",
}


def wheel(directory: Path) -> str:
    """Make a wheel of `MODULES`; return its path."""
    path = directory / "preloads-1-py3-none-any.whl"
    about = "preloads-1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in MODULES.items():
            archive.writestr(f"{name}.py", text)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: preloads\nVersion: 1\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return str(path)


@pytest.fixture
def requirements(tmp_path: Path) -> list[str]:
    return [wheel(tmp_path)]


def add(a: int) -> int:
    return a + 1


def probe(*names: str) -> tuple[list[str], float]:
    """Return the modules that are imported already, and a random number; then import them."""
    import importlib
    import random
    import sys

    found = [name for name in names if name in sys.modules]
    for name in names:
        importlib.import_module(name)
    return found, random.random()


def until(condition: Callable[[], Any]) -> Any:
    """Return what a condition gives as soon as that is something."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
    return found


def preload_of(home: Home) -> dict[str, Any]:
    """Return what `atoll env show` says of the one environment."""
    (environment,) = json.loads(home.atoll("env", "list", "--json").stdout)
    shown = json.loads(home.atoll("env", "show", environment["key"], "--json").stdout)
    found: dict[str, Any] = shown["preload"]
    return found


def test_new_workers_have_what_earlier_calls_imported(atoll_home: Home, requirements: list[str]) -> None:
    """The list outlives the sandbox and the daemon; two workers never have the same random numbers."""
    staying = isolated(requirements=requirements, keep_alive=600, env={"KEEPS": "the sandbox"})(add)
    fresh = isolated(requirements=requirements, keep_alive=0)(probe)
    assert staying(1) == 2
    assert fresh("heavy")[0] == []
    until(lambda: fresh("heavy")[0] == ["heavy"])
    assert preload_of(atoll_home) == {"modules": ["heavy", "heavy_part"], "refused": {}}
    numbers = [fresh("heavy")[1] for _ in range(5)]
    assert len(set(numbers)) == len(numbers)
    atoll_home.atoll("stop")
    assert staying(1) == 2
    until(lambda: fresh("heavy_part")[0] == ["heavy_part"])


def test_a_function_with_variables_imports_for_itself(atoll_home: Home, requirements: list[str]) -> None:
    """Its variables may change what an import does, unless it names the modules."""
    staying = isolated(requirements=requirements, keep_alive=600, env={"KEEPS": "the sandbox"})(add)
    fresh = isolated(requirements=requirements, keep_alive=0)(probe)
    staying(1)
    until(lambda: fresh("heavy")[0] == ["heavy"])
    assert fresh.on(env={"A": "1"})("heavy")[0] == []
    named = fresh.on(env={"A": "1"}, preload=["heavy"])
    staying.on(preload=["heavy"])(1)
    until(lambda: named("heavy")[0] == ["heavy"])
    nothing = fresh.on(preload=[])
    staying.on(preload=[])(1)
    assert [nothing("heavy")[0] for _ in range(3)] == [[], [], []]


def mode_after_setting() -> str:
    """Return the mode of a module that reads a variable at its import."""
    import os

    os.environ["MODE"] = "set"
    import reads  # type: ignore[import-not-found]

    return str(reads.mode)


def test_a_function_that_sets_variables_imports_for_itself(atoll_home: Home, requirements: list[str]) -> None:
    """An import that reads a variable sees the value that the function has set, in each new worker."""
    staying = isolated(requirements=requirements, keep_alive=600, env={"KEEPS": "the sandbox"})(add)
    fresh = isolated(requirements=requirements, keep_alive=0)(probe)
    setting = isolated(requirements=requirements, keep_alive=0)(mode_after_setting)
    staying(1)
    until(lambda: fresh("reads", "heavy")[0] == ["reads", "heavy"])
    assert [setting() for _ in range(3)] == ["set"] * 3


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("threads", "starts a thread"),
        ("sockets", "leaves `socket:"),
        ("children", "starts a process"),
        ("crashes", "ends the process"),
        ("moves", "changes the process's working directory"),
        ("patches", "changes the module `common`"),
    ],
)
def test_an_unsafe_module_is_left_out(atoll_home: Home, requirements: list[str], module: str, reason: str) -> None:
    """`atoll env show` says why; the others are preloaded all the same."""
    staying = isolated(requirements=requirements, keep_alive=600, env={"KEEPS": "the sandbox"})(add)
    fresh = isolated(requirements=requirements, keep_alive=0)(probe)
    staying(1)
    fresh("heavy", module)
    until(lambda: fresh("heavy", module)[0] == ["heavy"])
    found = preload_of(atoll_home)
    needed = {"heavy", "heavy_part", *(("common",) if module == "patches" else ())}
    assert set(found["modules"]) == needed
    assert reason in found["refused"][module]
    text = atoll_home.atoll("env", "show", json.loads(atoll_home.atoll("env", "list", "--json").stdout)[0]["key"])
    assert f"not {module}: its import" in text.stdout


def test_the_projects_modules_are_never_preloaded(atoll_home: Home, requirements: list[str], tmp_path: Path) -> None:
    """A module of the project hides one of the environment with the same name, and an edit is seen at once."""
    staying = isolated(requirements=requirements, keep_alive=600, env={"KEEPS": "the sandbox"})(add)
    fresh = isolated(requirements=requirements, keep_alive=0)(probe)
    staying(1)
    until(lambda: fresh("common", "heavy")[0] == ["common", "heavy"])
    project = tmp_path / "project"
    project.mkdir()
    program = (
        "import sys\nfrom atoll import isolated\nimport common\n"
        f"def where(): return common.here\nwhere = isolated(requirements={requirements!r}, keep_alive=0)(where)\n"
        "print(where())\n"
    )
    (project / "program.py").write_text(program)
    for text in ("the project", "the project, edited"):
        (project / "common.py").write_text(f"here = {text!r}\n")
        done = atoll_home.python(str(project / "program.py"), cwd=project)
        assert done.stdout.strip() == text
