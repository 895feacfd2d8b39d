"""A program that the command line names is imported as Python would, and its unguarded calls do not run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.cli.programs import program, target
from atoll.cli.programs.program import TargetError
from atoll.sdk.function import IsolatedFunction

FUNCTION = "from atoll import isolated\n@isolated\ndef f():\n  '''Do it.'''\n  return 5\n"
ABSENT = "RESULT = absent()\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what the test imports is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    program.load.cache_clear()
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) + str(
            getattr(sys.modules[name], "__path__", "")
        ):
            del sys.modules[name]
    program.load.cache_clear()
    assert IsolatedFunction.refusal is None


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


INSIDE = "from . import const_x\n" + FUNCTION


@pytest.mark.parametrize(
    ("files", "named", "module"),
    [
        (["pack_a/__init__.py"], "pack_a/mod.py", "pack_a.mod"),
        (["pack_a/__init__.py"], "./pack_a/mod.py", "pack_a.mod"),
        (["pack_a/__init__.py"], "pack_a.mod", "pack_a.mod"),
        (["with space/pack_b/__init__.py", "with space/pack_b/sub/__init__.py"], "with space/pack_b/sub/mod.py", "pack_b.sub.mod"),
        (["pyproject.toml", "src/pack_c/__init__.py"], "src/pack_c/mod.py", "pack_c.mod"),
        (["pyproject.toml", "src/pack_c/__init__.py"], "pack_c.mod", "pack_c.mod"),
        (["pyproject.toml", "src/space_d/pack/__init__.py"], "src/space_d/pack/mod.py", "space_d.pack.mod"),
        (["pyproject.toml", "src/space_d/inner/x"], "src/space_d/inner/mod.py", "space_d.inner.mod"),
        (["pyproject.toml", "space_e/inner/x"], "space_e/inner/mod.py", "space_e.inner.mod"),
        (["space_f/x"], "space_f/mod.py", "space_f.mod"),
        (["space_f/x"], "space_f.mod", "space_f.mod"),
    ],
)  # fmt: skip
def test_a_file_of_a_package_is_imported_in_its_package(files: list[str], named: str, module: str, place: Path) -> None:
    """Relative imports work: by `__init__.py` files, by `src`, by the project's root, and by the module's name."""
    write(place, dict.fromkeys(files, ""))
    folder = Path(named).parent if named.endswith(".py") else next(Path(file).parent for file in files if "_" in file)
    write(place / folder, {"mod.py": INSIDE, "const_x.py": ""})
    found = target.find(f"{named}::f")
    assert found.module.__name__ == module
    assert found.function.local() == 5
    assert sys.modules[module] is found.module


def test_a_package_itself_can_be_named(place: Path) -> None:
    """By its directory, its `__init__.py` or its name."""
    for name in ("pack_g", "pack_h", "pack_i"):
        write(place, {f"{name}/__init__.py": INSIDE, f"{name}/const_x.py": ""})
    names = [target.find(named).module.__name__ for named in ("./pack_g", "pack_h/__init__.py::f", "pack_i::f")]
    assert names == ["pack_g", "pack_h", "pack_i"]


def test_a_script_has_its_own_directory_first(place: Path) -> None:
    """Any name of a file works, links lead to the real one, and a script beside a project is no part of it."""
    write(
        place, {"scripts/my-tool.py": "import beside_x\n" + FUNCTION, "scripts/beside_x.py": "", "pyproject.toml": ""}
    )
    (place / "link.py").symlink_to(place / "scripts" / "my-tool.py")
    assert target.find("link.py").module.__name__ == "__atoll_program__"
    assert sys.path[0] == str(place / "scripts")


def test_modules_beside_a_file_of_a_package_are_found_last(place: Path) -> None:
    """Such programs run with `python pack/mod.py`; the package's modules do not shadow Python's."""
    write(place, {"pack_j/__init__.py": "", "pack_j/sibling_x.py": "", "pack_j/queue.py": "1/0"})
    write(place, {"pack_j/mod.py": "import sibling_x, queue\n" + FUNCTION})
    assert target.find("pack_j/mod.py").module.__name__ == "pack_j.mod"
    assert sys.path[-1] == str(place / "pack_j")


def test_the_program_s_modules_win_over_those_that_the_command_has_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module beside a script with the name of a library of the command line's, or of one of Python's."""
    import sched

    import cyclopts

    monkeypatch.setitem(sys.modules, "sched", sched)
    for name in [name for name in sys.modules if name.partition(".")[0] == "cyclopts"]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    write(place, {"sched.py": "X = 1", "cyclopts/__init__.py": "Y = 2"})
    write(place, {"tool.py": "import sched, cyclopts\nZ = sched.X + cyclopts.Y\n" + FUNCTION})
    assert target.find("tool.py").module.Z == 3
    assert cyclopts.App is not None


def test_a_name_wins_over_a_file_where_it_is_asked_for(place: Path) -> None:
    """As `python -m`."""
    write(place, {"odd_k/__init__.py": "", "odd_k/py.py": FUNCTION, "odd_k.py": ""})
    assert target.find("odd_k.py::f", by_name=True).module.__name__ == "odd_k.py"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("nothing.py::f", "not a file"),
        ("no/such/file.py::f", "not a file"),
        ("nothing.mod::f", "no file and no module"),
        ("pack_l.nothing::f", "no file and no module"),
        ("pack_l.broken::f", "No module named 'absent_x'"),
        ("pack_l/broken.py::f", "No module named 'absent_x'"),
        ("pack_l/ends.py::f", "ends itself"),
        ("pack_l/good.py::g", "isolated functions there: f"),
        ("pack_l.none", "no isolated function"),
        ("io/mod.py::f", "'io' is not a package"),
    ],
)
def test_a_target_that_cannot_be_used_is_named(named: str, words: str, place: Path) -> None:
    """There is no such module, it fails, or another one has its name."""
    write(place, {"pack_l/__init__.py": "", "pack_l/none.py": "", "pack_l/good.py": FUNCTION})
    write(place, {"pack_l/broken.py": "import absent_x", "pack_l/ends.py": "raise SystemExit(3)"})
    write(place, {"io/__init__.py": "", "io/mod.py": FUNCTION})
    with pytest.raises(TargetError) as caught:
        target.find(named)
    assert words in f"{caught.value}"
    assert "importlib" not in f"{caught.value}"


CALLS = [
    "print(f())",
    "x = f.submit()",
    "list(f.map([1]))",
    "try: f()\nexcept BaseException: pass",
    "import asyncio; asyncio.run(f.aio())",
    "def main():\n  f()\nmain()",
    "import other_x",
]


@pytest.mark.parametrize("call", CALLS)
def test_an_unguarded_call_is_refused_with_its_line(call: str, place: Path) -> None:
    """To run one function does not run the program's own calls: the line and the guard are named."""
    write(place, {"unguarded.py": f"{FUNCTION}{call}\n", "other_x.py": FUNCTION + "f()\n"})
    with pytest.raises(TargetError) as caught:
        target.find("unguarded.py::f")
    line = 8 if call == CALLS[5] else 6
    file = "other_x.py" if "other_x" in call else "unguarded.py"
    assert f"line {line} of `{place / file}`" in caught.value.message
    assert 'if __name__ == "__main__":' in caught.value.hint


@pytest.mark.parametrize("call", ["print(f())", "x = f.submit()", "import other_x"])
def test_a_function_is_described_up_to_an_unguarded_call(
    call: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Help, environments and shells need no more; the user is told, also where the function comes too late."""
    write(place, {"unguarded.py": f"{FUNCTION}{call}\n@isolated\ndef late(): pass\n", "other_x.py": FUNCTION + "f()"})
    assert target.described("unguarded.py::f").local() == 5
    assert "line 6" in capsys.readouterr().err
    assert list(target.listed("unguarded.py")) == ["f"]
    with pytest.raises(TargetError, match="unguarded call"):
        target.described("unguarded.py::late")


def test_a_guarded_program_has_no_note(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Calls below the guard, and `local` calls anywhere."""
    write(place, {"guarded.py": FUNCTION + "X = f.local()\nif __name__ == '__main__':\n  f()\n"})
    assert target.find("guarded.py").function.local() == 5
    assert target.described("guarded.py").local() == 5
    assert capsys.readouterr().err == ""


def test_a_working_directory_that_was_removed_is_named(place: Path) -> None:
    """An absolute path works there."""
    write(place, {"tool.py": FUNCTION, "gone/x": ""})
    os.chdir(place / "gone")
    (place / "gone" / "x").unlink()
    (place / "gone").rmdir()
    with pytest.raises(TargetError):
        target.find("../tool.py")
    assert target.find(str(place / "tool.py")).function.local() == 5
    os.chdir(place)
