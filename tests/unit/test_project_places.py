"""The user's modules are found in each way that Python starts a program and finds a module."""

from __future__ import annotations

import os
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import Any

import pytest

from atoll.sdk.modules.discover import Sources

from .bare_worker import BareWorker

SHOW = """
from atoll.sdk.modules.discover import Sources
def show(f):
    found = Sources(f).current()
    print(sorted(file.path for file in found.files) if found else [])
"""
"""A package of an environment, as for the programs here."""
MAIN = "import lib\nfrom show import show\ndef f(): return lib.K\nif __name__ != 'lib.main': show(f)\n"
IN_PACKAGE = "from . import lib\nfrom show import show\ndef f(): return lib.K\nshow(f)\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def shown(root: Path, *arguments: str, cwd: str = "", text: str = "", path: str = "", **variables: str) -> str:
    """Run Python with `show` in its environment, and return its last line."""
    write(root / "tools" / "lib" / "python3" / "site-packages", {"show.py": SHOW})
    places = [str(root / "tools" / "lib" / "python3" / "site-packages"), *filter(None, [path])]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root / cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), **variables},
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def test_a_script_that_is_a_symlink_has_its_modules_beside_the_real_file(tmp_path: Path) -> None:
    """`sys.path[0]` is the directory of the real path; links to links and relative ones too."""
    write(tmp_path, {"real/main.py": MAIN, "real/lib.py": "K = 1", "bin/x": "", "home/x": ""})
    (tmp_path / "bin/tool.py").symlink_to("../real/main.py")
    (tmp_path / "home/again").symlink_to(tmp_path / "bin/tool.py")
    assert shown(tmp_path, "bin/tool.py") == "['lib.py']"
    assert shown(tmp_path, "again", cwd="home") == "['lib.py']"


@pytest.mark.parametrize(
    ("arguments", "cwd", "files"),
    [
        (["-m", "pkg.mod"], "", ["pkg/__init__.py", "pkg/lib.py", "pkg/mod.py"]),
        (["-m", "pkg"], "", ["pkg/__init__.py", "pkg/__main__.py", "pkg/lib.py"]),
        (["-m", "spaces.inner.mod"], "", ["spaces/inner/lib.py", "spaces/inner/mod.py"]),
        (["folder"], "", ["lib.py"]),
        (["folder/__main__.py"], "", ["lib.py"]),
        (["main.py"], "folder", ["lib.py"]),
        (["-P", "-c", "import sys; sys.path.append('folder'); import main"], "", ["lib.py", "main.py"]),
        (["-c", MAIN], "folder", ["lib.py"]),
        (["-"], "folder", ["lib.py"]),
        (["-c", "import runpy, sys; sys.path.insert(0, 'folder'); runpy.run_path('folder/main.py')"], "", ["lib.py"]),
        (["-m", "cProfile", "-o", os.devnull, "folder/main.py"], "", ["lib.py"]),
        (["spaces é/main.py"], "", ["lib.py"]),
        (["site-packages/mine/main.py"], "", ["lib.py"]),
        (["env/main.py"], "", ["lib.py"]),
    ],
    ids=lambda value: " ".join(value)[:24] if isinstance(value, list) and value[0][0] != "'" else "",
)
def test_each_way_to_start_a_program(arguments: list[str], cwd: str, files: list[str], tmp_path: Path) -> None:
    """Modules that a program imports travel however it was started, and the whole package of a main module too."""
    for folder in ("folder", "spaces é", "site-packages/mine", "env"):
        write(tmp_path / folder, {"main.py": MAIN, "__main__.py": MAIN, "lib.py": "K = 1"})
    for package in ("pkg", "spaces/inner"):
        write(tmp_path / package, {"lib.py": "K = 1"})
    write(tmp_path, {"pkg/__init__.py": "", "pkg/mod.py": IN_PACKAGE, "spaces/inner/mod.py": IN_PACKAGE})
    expected = files
    if arguments == ["-m", "pkg"]:
        write(tmp_path, {"pkg/__main__.py": IN_PACKAGE})
        (tmp_path / "pkg/mod.py").unlink()
    assert shown(tmp_path, *arguments, cwd=cwd, text=MAIN) == str(expected)


def test_modules_of_a_zip_archive_travel_unpacked(tmp_path: Path) -> None:
    """`python app.pyz` and an archive on `sys.path`: modules, packages with their data, namespace packages."""
    write(
        tmp_path / "app",
        {
            "__main__.py": "import lib, pkg.inner, space.part\n" + MAIN,
            "lib.py": "K = 1\ndef g():\n  import late",
            "late.py": "",
            "unrelated.py": "",
            "pkg/__init__.py": "",
            "pkg/inner.py": "",
            "pkg/data.txt": "x",
            "space/part.py": "",
        },
    )
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    files = "['late.py', 'lib.py', 'pkg/__init__.py', 'pkg/data.txt', 'pkg/inner.py', 'space/part.py']"
    assert shown(tmp_path, "app.pyz") == files
    program = "import lib, pkg.inner, space.part\n" + MAIN
    assert shown(tmp_path, "-c", program, path=str(tmp_path / "app.pyz"), cwd="app/pkg") == files


def test_modules_from_outside_of_the_project_travel_where_they_are_used(tmp_path: Path) -> None:
    """Directories on `PYTHONPATH` are the user's own, except those that a tool installed packages into."""
    write(
        tmp_path,
        {
            "project/pyproject.toml": "",
            "project/main.py": "import used, unused, installed\nfrom given import thing\nfrom show import show\n"
            "del unused\ndef f():\n  import late\n  return used, thing, installed\nshow(f)\n",
            "shared/used.py": "import deeper",
            "shared/unused.py": "",
            "shared/deeper/__init__.py": "",
            "shared/given.py": "class Thing: pass\nthing = Thing()",
            "shared/late.py": "",
            "target/installed.py": "",
            "target/installed-1.dist-info/METADATA": "",
        },
    )
    path = os.pathsep.join((str(tmp_path / "shared"), str(tmp_path / "target")))
    found = shown(tmp_path, "main.py", cwd="project", path=path)
    assert found == "['deeper/__init__.py', 'given.py', 'late.py', 'used.py']"


def test_what_the_requirements_name_does_not_travel_from_outside(tmp_path: Path) -> None:
    """A package that the environment has by the user's wish is not replaced by a copy on `PYTHONPATH`."""
    write(tmp_path, {"shared/some_lib.py": "", "project/x": ""})
    program = (
        "import some_lib\nfrom atoll.sdk.modules.discover import Sources\ndef f(): return some_lib\n"
        "print([Sources(f, None, given).current() is None for given in ([], ['Some.Lib[x]>=2; python_version>\"3\"'])])"
    )
    assert shown(tmp_path, "-c", program, cwd="project", path=str(tmp_path / "shared")) == "[False, True]"


def test_a_module_from_outside_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    """It may be a package that the environment has; one of the project's own is an error."""
    write(tmp_path, {"shared/large.py": "#" * 3000, "project/x": ""})
    program = "from atoll.sdk.modules import bundle\nbundle.MOST_BYTES = 2000\nimport large\n" + MAIN
    write(tmp_path, {"project/lib.py": "K = 1"})
    assert shown(tmp_path, "-c", program, cwd="project", path=str(tmp_path / "shared")) == "['lib.py']"


def test_portions_of_a_namespace_package_travel_together(tmp_path: Path) -> None:
    """PEP 420: one package whose parts lie in two source directories of a repository."""
    write(
        tmp_path,
        {
            "one/src/space/a.py": "K = 1",
            "two/src/space/b.py": "K = 2",
            "two/src/space/data/x.json": "{}",
            "app/main.py": "import space.a, space.b\nfrom show import show\ndef f(): return space.a.K\nshow(f)\n",
        },
    )
    path = os.pathsep.join((str(tmp_path / "one/src"), str(tmp_path / "two/src")))
    assert shown(tmp_path, "main.py", cwd="app", path=path) == "['space/a.py', 'space/b.py', 'space/data/x.json']"


def test_tracebacks_name_the_portion_that_a_module_is_of(tmp_path: Path) -> None:
    """Each part of a namespace package has its own path on the caller's machine."""
    write(
        tmp_path,
        {
            "one/part_space/a.py": "def f(): 1 / 0",
            "two/part_space/b.py": "def f(): 1 / 0",
            "two/part_space/inner/c.py": "def f(): 1 / 0",
        },
    )
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("def f(name):\n  import importlib\n  importlib.import_module(name).f()", space)
    portions = [str(tmp_path / "one" / "part_space"), str(tmp_path / "two" / "part_space")]
    with BareWorker(tmp_path / "worker") as worker:
        worker.install(Sources(space["f"], portions).current())
        for name, file in [("a", "one/part_space/a"), ("b", "two/part_space/b"), ("inner.c", "two/part_space/inner/c")]:
            with pytest.raises(ZeroDivisionError) as caught:
                worker.call(space["f"], f"part_space.{name}")
            assert [entry.path for entry in caught.traceback][-1] == tmp_path / f"{file}.py"
