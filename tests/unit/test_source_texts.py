"""The texts of files that travel with code, and what a worker shows of them."""

from __future__ import annotations

import importlib
import linecache
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from atoll import isolated
from atoll.agent import numba_cache
from atoll.payload.functions import FunctionPickler
from atoll.payload.texts import dump as texts_dump
from atoll.payload.texts import load as texts_load
from atoll.wire.call_protocol import CallProtocol

from .bare_worker import BareWorker, run_script


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareWorker]:
    """One worker for many calls."""
    with BareWorker(tmp_path_factory.mktemp("worker")) as worker:
        yield worker


def program(file: str, source: str) -> dict[str, Any]:
    """Return the globals of a program that has run from a file."""
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__, "__file__": file}
    exec(compile(source, file, "exec"), space)
    return space


def texts(*functions: Any, own_lines: bool = False) -> dict[str, str]:
    packed = texts_dump.pack([one.__code__ for one in functions], own_lines)
    return {name: text.decode() for name, text in texts_dump.unpack(packed.data)}


SOURCE = """\
import inspect, linecache, sys, traceback, warnings
def helper(n):
    return 10 / n  # the line
def shown():
    linecache.checkcache()
    try:
        helper(0)
    except ZeroDivisionError:
        return traceback.format_exc()
def source():
    return inspect.getsource(helper), inspect.getsourcefile(helper)
def cleared():
    linecache.clearcache()
    return source(), shown()
def inner():
    def local():
        return 1
    return inspect.getsource(local), inspect.getsource(lambda: 2)
def warned():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("careful")
    return warnings.formatwarning(caught[0].message, caught[0].category, caught[0].filename, caught[0].lineno)
"""


@pytest.mark.parametrize("kind", ["file", "cell", "kernel", "encoded"])
def test_a_worker_has_the_text_of_the_callers_code(kind: str, tmp_path: Path, worker: BareWorker) -> None:
    """Tracebacks, `inspect` and warnings inside show the lines, for scripts and for cells that are in no file."""
    name, source = str(tmp_path / "script.py"), SOURCE
    if kind == "cell":
        name = "<ipython-input-3-0f3a>"
    elif kind == "kernel":
        name = "/tmp/ipykernel_77/1234.py"
    if kind in ("cell", "kernel"):
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    elif kind == "encoded":
        source = "# coding: latin-1\r\n" + SOURCE.replace("the line", "die Größe").replace("\n", "\r\n")
        Path(name).write_bytes(source.encode("latin-1"))
    else:
        Path(name).write_text(source)
    mark = "# die Größe" if kind == "encoded" else "# the line"
    space = program(name, source.replace("\r\n", "\n"))
    for call in range(2):
        assert f"return 10 / n  {mark}" in worker.call(space["shown"]), call
        assert worker.call(space["source"]) == (f"def helper(n):\n    return 10 / n  {mark}\n", name)
    cleared, after = worker.call(space["cleared"])
    assert mark in cleared[0]
    assert mark in after
    local, nameless = worker.call(space["inner"])
    assert local == "    def local():\n        return 1\n"
    assert "lambda: 2" in nameless
    assert worker.call(space["warned"]).endswith('warnings.warn("careful")\n')
    linecache.cache.pop(name, None)


def test_an_edit_is_seen_by_the_next_call(tmp_path: Path, worker: BareWorker) -> None:
    """A program that was edited and started again has its new lines in the same worker."""
    file = tmp_path / "script.py"
    for source in (SOURCE, SOURCE.replace("10 / n", "20 / n"), "\n\n" + SOURCE):
        file.write_text(source)
        os.utime(file, (len(source), len(source)))
        assert worker.call(program(str(file), source)["source"])[0] in source


def test_a_file_that_was_edited_since_shows_no_wrong_lines(tmp_path: Path) -> None:
    """Where a function's name is not on its lines any more, the file is left out."""
    file = tmp_path / "script.py"
    file.write_text(SOURCE)
    space = program(str(file), SOURCE)
    assert texts(space["helper"]) == {str(file): SOURCE}
    file.write_text("# more\n" * 40 + SOURCE)
    assert texts(space["helper"]) == {}
    file.write_text("")
    assert texts(space["helper"]) == {}
    file.unlink()
    assert texts(space["helper"]) == {}


def test_no_other_file_is_read(tmp_path: Path) -> None:
    """A code object that names a file of other contents brings none of it, nor do devices and binary files."""
    secret = tmp_path / "secret"
    secret.write_text("token = 5\n" * 9)

    def own() -> int:
        return 1

    for name in (str(secret), "/dev/zero", sys.executable, "/etc/passwd", "/proc/self/environ", "relative", ""):
        code: CodeType = own.__code__.replace(co_filename=name, co_firstlineno=1)
        assert texts_dump.pack([code]).data == b"", name
    assert texts(textwrap.dedent) == {}  # the standard library is there already
    assert texts(pytest.fixture) == {}


def test_own_lines_are_the_codes_lines_alone(tmp_path: Path) -> None:
    """A function that is not trusted gets no other line of the program."""
    file = tmp_path / "script.py"
    file.write_text("TOKEN = 'secret'\n" + SOURCE)
    space = program(str(file), file.read_text())
    (text,) = texts(space["helper"], own_lines=True).values()
    assert text.splitlines()[2:4] == ["def helper(n):", "    return 10 / n  # the line"]
    assert not "".join(text.splitlines()[:2] + text.splitlines()[4:])


def test_large_files_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call of a worker stays small."""
    monkeypatch.setattr(texts_dump, "MOST_BYTES", 2000)
    (tmp_path / "large.py").write_text(SOURCE + "#" * 2000)
    (tmp_path / "small.py").write_text(SOURCE)
    functions = [program(str(tmp_path / name), SOURCE)["helper"] for name in ("large.py", "small.py")]
    assert list(texts(*functions)) == [str(tmp_path / "small.py")]


def test_texts_are_joined_by_file(tmp_path: Path) -> None:
    """Those of a function, its setup function and its arguments travel together."""
    packed = []
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_text(SOURCE)
        packed.append(texts_dump.pack([program(str(tmp_path / name), SOURCE)["helper"].__code__]))
    found = texts_dump.joined(*packed, packed[1])
    assert [name for name, _ in texts_dump.unpack(found.data)] == [str(tmp_path / f"{name}.py") for name in "abc"]
    assert texts_dump.joined(packed[0], packed[0]) is packed[0]
    assert texts_dump.joined(texts_dump.NONE, packed[0]).data == packed[0].data


def test_the_text_is_read_when_the_function_is_pickled_anew(tmp_path: Path) -> None:
    """A warm call reads no file, also of a function that is pickled for each call."""
    file = tmp_path / "script.py"
    source = "class Box: pass\nbox = Box()\ndef f(): return box\n"
    file.write_text(source)
    pickler = FunctionPickler(program(str(file), source)["f"])
    first = pickler.current()
    file.unlink()
    assert pickler.current() is not first  # an object may have changed
    assert pickler.current().texts is first.texts


@isolated
def doubled(value: int) -> int:
    return 2 * value


def test_texts_travel_once_for_each_lease() -> None:
    """They are sent ahead of the first call that has them, and not by calls behind it."""
    request = doubled.request((1,))
    assert request.call.texts_digest
    protocol = CallProtocol(1, fresh=False)
    kinds = [
        [header["type"] if isinstance(header, dict) else "call" for header, _ in frames]
        for frames in (
            protocol.start(request.call, 1.0),
            protocol.start(request.call, 1.0),
            protocol.start_more([request.call]),
        )
    ]
    assert kinds == [["texts", "call"], ["call"], ["call"]]
    lines = dict(texts_dump.unpack(request.call.texts))[__file__].decode().splitlines()
    assert "def doubled(value: int) -> int:" in lines


def test_the_text_of_an_argument_travels(tmp_path: Path) -> None:
    """A function among the arguments may be from a file that the called one is not from."""
    (tmp_path / "other.py").write_text(SOURCE)
    other = program(str(tmp_path / "other.py"), SOURCE)["helper"]
    names = [name for name, _ in texts_dump.unpack(doubled.request((other,)).call.texts)]
    assert names == [__file__, str(tmp_path / "other.py")]


def test_a_function_of_plain_data_gets_its_own_lines() -> None:
    """Its caller does not trust it with the rest of the file."""
    (text,) = dict(texts_dump.unpack(doubled.on(results="data").request((1,)).call.texts)).values()
    assert sorted(set(text.decode().splitlines())) == [
        "",
        "    return 2 * value",
        "@isolated",
        "def doubled(value: int) -> int:",
    ]


THREAD = """
import threading
from pathlib import Path
from tests.unit.bare_worker import BareWorker
import tempfile
def fails():
    1 / 0  # in a thread
def f():
    thread = threading.Thread(target=fails, name="own")
    thread.start()
    thread.join()
with tempfile.TemporaryDirectory() as directory, BareWorker(Path(directory)) as worker:
    worker.call(f)
"""


def test_an_uncaught_exception_of_a_thread_has_its_line(tmp_path: Path) -> None:
    """Also where the interpreter itself would look for the file."""
    script = tmp_path / "program.py"
    script.write_text(THREAD)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Exception in thread own:\n" in done.stderr
    assert "1 / 0  # in a thread" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_program_in_an_archive_has_its_text(tmp_path: Path) -> None:
    """Its loader has the text, and no file is on the disk."""
    package = tmp_path / "app"
    package.mkdir()
    (package / "__main__.py").write_text(
        "from atoll.payload.texts import dump as texts_dump\ndef f(): return 1\n"
        "(name, text), = texts_dump.unpack(texts_dump.pack([f.__code__]).data)\nprint(name.endswith('.py'), text.decode())\n"
    )
    subprocess.run([sys.executable, "-m", "zipapp", str(package), "-o", str(tmp_path / "app.pyz")], check=True)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "app.pyz")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("True from atoll"), done.stderr


# --- numba ------------------------------------------------------------------------------------------------------

CACHING = """
import os
class config: CACHE_DIR = os.environ["CACHES"]
class _CacheLocator:
    def ensure_cache_path(self): os.makedirs(self.get_cache_path(), exist_ok=True)
class Ordinary(_CacheLocator):
    @classmethod
    def from_function(cls, function, file): return cls()
class CacheImpl:
    _locator_classes = [Ordinary]
    def __init__(self, function):
        file = function.__code__.co_filename
        found = (cls.from_function(function, file) for cls in self._locator_classes)
        self.locator = next(one for one in found if one is not None)
"""


def test_numba_keeps_compiled_code_of_the_callers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is named by the caller's path, and the stamp is the text's; other functions are left to numba."""
    for directory in ("numba", "numba/core"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "__init__.py").touch()
    (tmp_path / "numba/core/caching.py").write_text(CACHING)
    monkeypatch.setenv("CACHES", str(tmp_path / "caches"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(texts_load, "_shown", {})
    monkeypatch.setattr(linecache, "clearcache", linecache.clearcache)
    numba_cache.watch()
    numba_cache.watch()
    caching = importlib.import_module("numba.core.caching")
    try:
        found = []
        for source in (SOURCE, SOURCE, SOURCE.replace("10 / n", "20 / n")):
            file = tmp_path / "script.py"
            file.write_text(source)
            function = program(str(file), source)["helper"]
            texts_load.show(texts_dump.pack([function.__code__]).data)
            locator = caching.CacheImpl(function).locator
            assert os.path.isdir(locator.get_cache_path())
            found.append((locator.get_cache_path(), locator.get_source_stamp(), locator.get_disambiguator()))
        assert found[0] == found[1]
        assert found[0][0] == found[2][0]
        assert found[0][1] != found[2][1]
        assert found[0][2] == "2"
        assert type(caching.CacheImpl(textwrap.dedent).locator) is caching.Ordinary
        assert type(caching.__loader__).__name__ == "SourceFileLoader"
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
            del sys.modules[name]
        linecache.cache.pop(str(tmp_path / "script.py"), None)


def test_scripts_of_one_program_print_their_lines(tmp_path: Path) -> None:
    """A class of the program has its text too, as soon as `__main__` has its file."""
    printed = run_script(
        tmp_path,
        "import inspect, sys, tempfile\nfrom pathlib import Path\nfrom tests.unit.bare_worker import BareWorker\n"
        "class K:\n    def m(self): return 1\n"
        "def f():\n    sys.modules['__main__'].__file__ = __file__\n    return inspect.getsource(K)\n"
        "with tempfile.TemporaryDirectory() as directory, BareWorker(Path(directory)) as worker: print(worker.call(f))\n",
    )
    assert printed == "class K:\n    def m(self): return 1\n\n"
