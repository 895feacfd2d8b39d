"""The project's modules travel as they are on the disk at the moment of the call."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import file_stamp
from atoll.errors import SerializationError
from atoll.payload import install as agent_sources
from atoll.sdk.modules import bundle as bundle_module
from atoll.sdk.modules.bundle import imports_of
from atoll.sdk.modules.discover import Sources

from .bare_worker import BareWorker, run_script


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that the main program's project is, first on `sys.path`."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(root / "main.py"), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None, raising=False)
    write(root, {"main.py": "", "pyproject.toml": ""})
    before = set(sys.modules)
    yield root
    for name in set(sys.modules) - before:
        if str(root) in str(getattr(sys.modules[name], "__file__", "")) + str(
            getattr(sys.modules[name], "__path__", "")
        ):
            del sys.modules[name]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def interactive(source: str) -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<prompt>", "exec"), space)
    return space["f"]


def names(sources: Sources) -> list[str]:
    found = sources.current()
    return [] if found is None else [file.path for file in found.files]


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all files for old ones, whose stamps alone say whether they changed."""
    monkeypatch.setattr(file_stamp, "YOUNG_SECONDS", 0.0)


def tick(root: Path) -> None:
    """Wait until the clock that the kernel stamps files with has moved on."""
    probe = root.parent / "probe"
    probe.touch()
    first = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == first:
        probe.chmod(0o600)


def test_nothing_of_the_project_gives_no_bundle(project: Path) -> None:
    """A function that imports nothing of the project's sends nothing; the main program itself stays."""
    assert Sources(interactive("import json\ndef f():\n  import os, email.message")).current() is None


def test_imported_modules_and_what_they_import_travel(project: Path) -> None:
    """Modules in `sys.modules`, imports in the function's body, and imports of those, in every spelling."""
    write(
        project,
        {
            "loaded.py": "import json\nif 1: import deep_a, \\\n  deep_b as x; import deep_c\n",
            "deep_a.py": "def g():\n    from deep_d.inner import z\n",
            "deep_b.py": "",
            "deep_c.py": "import importlib\nimportlib.import_module('deep_e')\n",
            "deep_d/__init__.py": "from . import inner\nfrom .inner import z\n",
            "deep_d/inner.py": "z = 1\n",
            "deep_d/data/table.json": "{}",
            "deep_d/__pycache__/x.pyc": "no",
            "deep_d/.venv/pyvenv.cfg": "no",
            "deep_d/env/pyvenv.cfg": "no",
            "deep_d/node_modules/x.js": "no",
            "deep_e.py": "",
            "in_body.py": "",
            "in_helper.py": "",
            "in_nested.py": "",
            "in_method.py": "",
            "by_string.py": "",
            "unrelated.py": "",
            "space/part/code.py": "",
        },
    )
    importlib.import_module("loaded")
    f = interactive(
        "def f():\n  import in_body\n  h()\n  def n():\n    from in_nested import x\n"
        "  import importlib; importlib.import_module('by_string'); C().m()\n"
        "  import space.part.code\n"
        "def h():\n  import in_helper\n"
        "class C:\n  def m(self):\n    import in_method\n"
    )
    assert names(Sources(f)) == sorted(
        [
            *("loaded.py", "deep_a.py", "deep_b.py", "deep_c.py", "deep_e.py"),
            *("deep_d/__init__.py", "deep_d/inner.py", "deep_d/data/table.json"),
            *("in_body.py", "in_helper.py", "in_nested.py", "in_method.py", "by_string.py", "space/part/code.py"),
        ]
    )


def test_the_main_program_travels_where_it_is_imported_by_name(project: Path) -> None:
    """A module that imports the script by its name needs it in the worker too."""
    write(project, {"user.py": "import main\n"})
    assert names(Sources(interactive("def f():\n  import user"))) == ["main.py", "user.py"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import a", {"a"}),
        ("import a.b.c as d, e , f as g  # h", {"a", "e", "f"}),
        ("from a.b import c", {"a"}),
        ("from . import c\nfrom .d import e\nfrom ..f import g", set()),
        ("if x: import a; from b import c", {"a", "b"}),
        ("try:\n\timport a\nexcept ImportError:\n\timport b", {"a", "b"}),
        ("import a, \\\n    b", {"a", "b"}),
        ("from a import (\n  b,\n  c)", {"a"}),
        ("important = 1\nx = 'import y'", set()),
        ("from a import*", set()),
    ],
)
def test_imports_are_read_from_text(text: str, expected: set[str]) -> None:
    """The pattern finds the top-level names of every form of import statement."""
    if text == "from a import*":
        expected = {"a"}
    assert set(imports_of(text)[0]) == expected


@pytest.mark.parametrize("old", [False, True])
def test_every_kind_of_edit_is_seen(project: Path, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits at once and after a while, new files, removed files, data, and new imports change the bundle."""
    if old:
        monkeypatch.setattr(file_stamp, "YOUNG_SECONDS", 0.0)
    write(project, {"pkg/__init__.py": "A = 1\n", "pkg/m.py": "", "pkg/data.txt": "x", "fresh.py": ""})
    sources = Sources(interactive("def f():\n  import pkg"))
    seen = []

    def changed() -> bool:
        if old:
            tick(project)
        found = sources.current()
        assert found is not None
        again = sources.current()
        assert again is found
        seen.append(found.digest)
        return found.digest not in seen[:-1]

    assert changed()
    assert not changed()
    for step in range(3):
        write(project, {"pkg/__init__.py": f"A = {step + 2}\n"})  # of the same size each time
        assert changed()
    write(project, {"pkg/new.py": ""})
    assert changed()
    write(project, {"pkg/sub/deeper/x.txt": "1"})
    assert changed()
    write(project, {"pkg/sub/deeper/x.txt": "2"})
    assert changed()
    (project / "pkg/new.py").unlink()
    assert changed()
    (project / "pkg/m.py").chmod(0o755)
    assert changed()
    write(project, {"pkg/m.py": "import fresh\n"})
    assert changed()
    assert "fresh.py" in names(sources)
    os.replace(project / "fresh.py", project / "moved.py")
    assert "fresh.py" not in names(sources)


@pytest.mark.usefixtures("trusting")
def test_a_change_that_hides_its_time_is_seen(project: Path) -> None:
    """Content that changes under the same size and modification time is seen by the inode's time."""
    write(project, {"pkg.py": "A = 1\n"})
    sources = Sources(interactive("def f():\n  import pkg"))
    first = sources.current()
    before = (project / "pkg.py").stat()
    tick(project)
    write(project, {"pkg.py": "A = 2\n"})
    os.utime(project / "pkg.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = sources.current()
    assert first is not None
    assert second is not None
    assert first.digest != second.digest


@pytest.mark.usefixtures("trusting")
def test_a_module_that_appears_later_is_found(project: Path) -> None:
    """An import that nothing answers at the first call finds its module once it was written."""
    sources = Sources(interactive("def f():\n  import appears"))
    assert sources.current() is None
    tick(project)
    write(project, {"appears.py": ""})
    assert names(sources) == ["appears.py"]


@pytest.mark.usefixtures("trusting")
def test_a_module_that_is_imported_later_is_found(project: Path) -> None:
    """What the caller imports after the first call travels with the next."""
    write(project, {"later.py": ""})
    importlib.import_module("later")
    del sys.modules["later"]
    sources = Sources(interactive("def f(): pass"))
    assert sources.current() is None
    importlib.import_module("later")
    assert names(sources) == ["later.py"]


@pytest.mark.usefixtures("trusting")
def test_a_directory_that_joins_the_path_later_is_searched(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `sys.path` says at the time of the call decides."""
    write(project, {"src/below.py": ""})
    sources = Sources(interactive("def f():\n  import below"))
    assert sources.current() is None
    monkeypatch.setattr(sys, "path", [*sys.path, str(project / "src")])
    assert names(sources) == ["below.py"]


def test_a_helper_that_is_rebound_brings_its_imports(project: Path) -> None:
    """The function's code is looked at as it is now, also before two rebindings of one helper."""
    write(project, {"one.py": "", "two.py": ""})
    f = interactive("def h():\n  import one\ndef f(): h()")
    sources = Sources(f)
    assert names(sources) == ["one.py"]
    exec("def h():\n  import two", f.__globals__)
    assert names(sources) == ["two.py"]


def test_environments_libraries_and_atoll_never_travel(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in an environment below the project is the environment's."""
    write(
        project,
        {
            ".venv/pyvenv.cfg": "",
            ".venv/lib/python3/site-packages/third.py": "",
            ".venv/lib/plain.py": "",
            "vendor/dist-packages/fourth.py": "",
        },
    )
    for directory in (".venv/lib/python3/site-packages", ".venv/lib", "vendor/dist-packages"):
        monkeypatch.syspath_prepend(str(project / directory))
    f = interactive("def f():\n  import third, plain, fourth, atoll, fal_serverless, json, pytest")
    assert Sources(f).current() is None


def test_a_project_may_lie_in_an_environment_s_root(project: Path) -> None:
    """`python -m venv .` in the project's own directory does not hide its modules."""
    write(project, {"pyvenv.cfg": "", "mine.py": ""})
    assert names(Sources(interactive("def f():\n  import mine"))) == ["mine.py"]


def test_local_modules_decide(project: Path, tmp_path: Path) -> None:
    """Names and paths, of modules inside and outside of the project; an empty list for none; nothing else travels."""
    write(project, {"one.py": "import two", "two.py": "", "pkg/__init__.py": "", "pkg/sub/__init__.py": ""})
    write(tmp_path, {"elsewhere/lib_a/__init__.py": "", "elsewhere/lib_b.py": ""})
    importlib.import_module("one")
    f = interactive("def f():\n  import two")
    assert Sources(f, []).current() is None
    assert names(Sources(f, ["one"])) == ["one.py"]
    assert names(Sources(f, ["pkg.sub"])) == ["pkg/__init__.py", "pkg/sub/__init__.py"]
    elsewhere = tmp_path / "elsewhere"
    assert names(Sources(f, [str(elsewhere / "lib_a"), elsewhere / "lib_b.py"])) == ["lib_a/__init__.py", "lib_b.py"]
    given = Sources(f, [str(elsewhere / "lib_a")])
    first = given.current()
    write(elsewhere, {"lib_a/__init__.py": "x = 1"})
    second = given.current()
    assert first is not None
    assert second is not None
    assert first.digest != second.digest
    with pytest.raises(SerializationError, match="`nowhere`"):
        Sources(f, ["nowhere"]).current()


def test_a_file_travels_as_the_module_that_it_is(project: Path) -> None:
    """A script under the name it was given, a module of a package with its package."""
    write(project, {"tool.py": "", "pkg/__init__.py": "", "pkg/mod.py": ""})
    sources = Sources(interactive("def f(): pass"))
    for module, file, expected in [
        ("program", "tool.py", ["program.py"]),
        ("pkg.mod", "pkg/mod.py", ["pkg/__init__.py", "pkg/mod.py"]),
        ("pkg", "pkg/__init__.py", ["pkg/__init__.py", "pkg/mod.py"]),
    ]:
        assert [found.path for found in sources.with_file(module, str(project / file)).files] == expected


def test_too_much_is_refused_by_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package over the limit is named, with its size and the way out; the next call works once it is smaller."""
    write(project, {"small.py": "", "big/__init__.py": "", "big/weights.bin": "x" * 5000})
    monkeypatch.setattr(bundle_module, "MOST_BYTES", 4000)
    sources = Sources(interactive("def f():\n  import big, small"))
    with pytest.raises(SerializationError, match="`big`") as caught:
        sources.current()
    assert "weights.bin" in caught.value.message
    assert "local_modules" in caught.value.hint
    write(project, {"big/weights.bin": "x"})
    assert names(sources) == ["big/__init__.py", "big/weights.bin", "small.py"]
    monkeypatch.setattr(bundle_module, "MOST_FILES", 2)
    write(project, {"big/more.txt": "x"})
    with pytest.raises(SerializationError, match="`big`"):
        sources.current()


def test_a_directory_of_data_is_not_taken_for_a_module(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in a docstring that a directory without code has brings neither the directory nor an error."""
    write(project, {"one.py": '"""How to\n\nimport data\n"""\n', "data/large.bin": "x" * 5000})
    monkeypatch.setattr(bundle_module, "MOST_BYTES", 4000)
    assert names(Sources(interactive("def f():\n  import one"))) == ["one.py"]


def test_a_working_directory_that_is_gone_does_no_harm(tmp_path: Path) -> None:
    """A program whose working directory was removed still finds what its function needs."""
    write(tmp_path, {"beside.py": "", "gone/x": ""})
    program = "import os, shutil\nos.chdir('gone')\nshutil.rmtree(os.getcwd())\n" + PROGRAM
    assert run_script(tmp_path, program) == "['beside.py']\n"


def test_links_pipes_and_loops_do_no_harm(project: Path) -> None:
    """Links are followed once, special files are left out, and what vanishes is not missed."""
    write(project, {"pkg/__init__.py": "", "shared/x.txt": "1"})
    (project / "pkg/loop").symlink_to(project / "pkg")
    (project / "pkg/linked").symlink_to(project / "shared")
    (project / "pkg/gone.py").symlink_to(project / "nothing")
    os.mkfifo(project / "pkg/pipe")
    assert names(Sources(interactive("def f():\n  import pkg"))) == ["pkg/__init__.py", "pkg/linked/x.txt"]


def test_a_worker_runs_what_the_disk_says(project: Path, tmp_path: Path) -> None:
    """Modules, relative imports and package data work in the worker, and its tracebacks show the caller's files."""
    write(
        project,
        {
            "pkg/__init__.py": "from .inner import fail, read\n",
            "pkg/inner.py": "import pathlib\n\ndef read():\n    return (pathlib.Path(__file__).parent / 'd.txt').read_text()"
            "\n\ndef fail():\n    return 1 / 0\n",
            "pkg/d.txt": "data",
            "single.py": "X = 5\ndef fail(): raise KeyError(X)\n",
        },
    )
    f = interactive("def f():\n  import pkg, single\n  return pkg.read(), single.X")
    fails = interactive("def f():\n  import pkg\n  pkg.fail()")
    single = interactive("def f():\n  import single\n  single.fail()")
    sources = Sources(f)
    for number, text in enumerate(["data", "more"]):
        write(project, {"pkg/d.txt": text})
        with BareWorker(tmp_path / f"worker{number}") as worker:
            worker.install(sources.current())
            assert worker.call(f) == (text, 5)
            with pytest.raises(ZeroDivisionError) as caught:
                worker.call(fails)
            assert [entry.path for entry in caught.traceback][-1] == project / "pkg/inner.py"
            assert str(caught.traceback[-1].statement).strip() == "return 1 / 0"
            with pytest.raises(KeyError) as other:
                worker.call(single)
            assert other.traceback[-1].path == project / "single.py"


@pytest.mark.parametrize(
    ("text", "kind"),
    [("def f(:\n", SyntaxError), ("if 1:\nx\n", IndentationError), ("from single import y\n", ImportError)],
)
def test_errors_of_an_import_name_the_callers_file(
    text: str, kind: type[BaseException], project: Path, tmp_path: Path
) -> None:
    """A module that cannot be imported is named by its path here, in the attributes, the arguments and what is printed."""
    write(project, {"pkg/__init__.py": "", "pkg/broken.py": text, "single.py": "X = 5\n"})
    f = interactive("def f():\n  import pkg.broken, single")
    with BareWorker(tmp_path / "worker") as worker:
        worker.install(Sources(f).current())
        with pytest.raises(kind) as caught:
            worker.call(f)
    assert caught.type is kind
    error: Any = caught.value
    shown = str(project / ("single.py" if kind is ImportError else "pkg/broken.py"))
    assert (error.path if kind is ImportError else error.filename) == shown
    printed = "".join(traceback.format_exception(error))
    assert shown in printed
    assert str(tmp_path / "worker") not in printed + repr(error.args)


def test_the_bundle_comes_before_the_environment(project: Path, tmp_path: Path) -> None:
    """As in the caller, a project's module wins over a package of the same name, but not over Atoll itself."""
    write(project, {"both.py": "WHOSE = 'project'\n"})
    write(tmp_path, {"env/both.py": "WHOSE = 'environment'\n"})
    f = interactive("def f():\n  import both, sys\n  return both.WHOSE, sys.path[0].endswith('lib')")
    with BareWorker(tmp_path, tmp_path / "env") as worker:
        worker.install(Sources(f).current())
        assert worker.call(f) == ("project", True)


def test_workers_share_what_was_unpacked(project: Path, tmp_path: Path) -> None:
    """The second worker with the same digest uses the directory that is there; no staging is left."""
    write(project, {"pkg.py": "X = 1\n"})
    f = interactive("def f():\n  import pkg\n  return pkg.__file__")
    found = Sources(f).current()
    with BareWorker(tmp_path) as one, BareWorker(tmp_path) as other:
        one.install(found)
        path = one.call(f)
        (Path(path).parent / "marker").touch()
        other.install(found)
        assert other.call(f) == path
    assert (Path(path).parent / "marker").exists()
    assert [entry.name for entry in (tmp_path / "bundles").iterdir()] == [Path(path).parent.name]


def test_a_worker_passes_its_bundle_on(project: Path, tmp_path: Path) -> None:
    """In a worker the project is what was unpacked: a nested call takes it along, with the first caller's paths."""
    write(project, {"pkg/__init__.py": "", "single.py": "", "lazy.py": ""})
    outer = interactive(
        "def f():\n  import pkg, single\n  from atoll.sdk.modules.discover import Sources\n  def g():\n    import lazy\n"
        "  found = Sources(g).current()\n  header, buffers = found.message()\n"
        "  return [file[0] for file in header['files']], header['origins'], found.digest"
    )
    with BareWorker(tmp_path) as worker:
        bundle = Sources(outer).current()
        assert bundle is not None
        worker.install(bundle)
        files, origins, digest = worker.call(outer)
    assert files == ["lazy.py", "pkg/__init__.py", "single.py"]
    assert origins == {name: str(project / name) for name in ("lazy.py", "pkg", "single.py")}
    assert digest == bundle.digest


@pytest.mark.parametrize(
    "path",
    ["/etc/x", "../x", "a/../../x", "a//b", "./a", "", "a/", "a\\..\\b", "a\0b", 5, None],
)
def test_a_path_that_leads_out_is_refused(path: Any, tmp_path: Path) -> None:
    """Nothing is written for a bundle with an absolute path, `..`, or what is no path."""
    header = {"type": "sources", "digest": "ab" * 16, "files": [["ok.py", 1, 0o644], [path, 1, 0o644]], "origins": {}}
    with pytest.raises(ValueError, match="path"):
        agent_sources.install(header, [b"1", b"2"], str(tmp_path / "bundles"))
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "../x"},
        {"digest": 5},
        {"files": [["ok.py", 2, 0o644]]},
        {"files": [["ok.py", 1, 0o4755]]},
        {"files": []},
        {"files": [["ok.py"]]},
        {"origins": []},
        {"origins": {"a": 1}},
    ],
)
def test_a_malformed_message_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """Sizes, modes, digests and origins are checked before anything is written."""
    header = {"type": "sources", "digest": "ab" * 16, "files": [["ok.py", 1, 0o644]], "origins": {}, **change}
    with pytest.raises(ValueError, match="`"):
        agent_sources.install(header, [b"1"], str(tmp_path / "bundles"))
    assert not (tmp_path / "bundles").exists()


# --- where the project is ---------------------------------------------------------------------------------------

PROGRAM = """
import sys
from atoll.sdk.modules.discover import Sources
def f():
    import beside
found = Sources(f).current()
print([file.path for file in found.files] if found else None)
"""


def test_a_script_without_a_project_brings_its_neighbours(tmp_path: Path) -> None:
    """Without a marker the script's own directory is the project."""
    write(tmp_path, {"beside.py": ""})
    assert run_script(tmp_path, PROGRAM) == "['beside.py']\n"


def test_modules_of_a_src_layout_travel(tmp_path: Path) -> None:
    """The root is found above the script, and what `sys.path` reaches below it belongs to the project."""
    write(tmp_path, {"pyproject.toml": "", "src/beside/__init__.py": "", "scripts/x": ""})
    program = "import sys\nsys.path.insert(0, sys.argv[1])\n" + PROGRAM
    assert run_script(tmp_path / "scripts", program, str(tmp_path / "src")) == "['beside/__init__.py']\n"


@pytest.mark.parametrize("start", [["-c", PROGRAM], ["-m", "app.main"]])
def test_programs_without_a_script_file_have_a_project(tmp_path: Path, start: list[str]) -> None:
    """`python -c` (as a prompt and a notebook) looks from the working directory, `-m` from its package's parent."""
    import subprocess

    write(tmp_path, {"beside.py": "", "app/__init__.py": "", "app/main.py": PROGRAM})
    done = subprocess.run(
        [sys.executable, *start], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'beside.py'" in done.stdout


def test_a_change_of_the_working_directory_moves_a_prompt_s_project(tmp_path: Path) -> None:
    """After `os.chdir` in a notebook or at a prompt, modules of the new directory travel."""
    import subprocess

    write(tmp_path, {"a/one.py": "", "b/two.py": ""})
    program = (
        "import os\nfrom atoll import file_stamp\nfrom atoll.sdk.modules.discover import Sources\nfile_stamp.YOUNG_SECONDS = 0\ndef f():\n  import one, two\ns = Sources(f)\n"
        "for d in 'ab':\n  os.chdir(f'{d}')\n  print([x.path for x in s.current().files])\n  os.chdir('..')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "['one.py']\n['two.py']\n", done.stderr


def test_importing_the_package_is_cheap() -> None:
    """Neither cloudpickle nor what reads code and projects is imported before the first call."""
    import subprocess

    check = (
        "import sys, atoll\n"
        "late = {'cloudpickle', '_atoll_cloudpickle', 'atoll.payload.functions', 'atoll.sdk.modules.discover', 'inspect', 'dis'}\n"
        "print(sorted(late & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False)
    assert "cloudpickle" not in done.stdout, done.stdout + done.stderr
