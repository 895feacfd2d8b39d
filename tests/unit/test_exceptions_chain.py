"""An exception arrives as it was raised: type, state, chain, and the frames where it happened."""

from __future__ import annotations

import json
import linecache
import re
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from atoll import errors
from atoll.errors import RemoteError, SerializationError
from atoll.payload import exceptions_dump as agent_exceptions
from atoll.payload import exceptions_load as sdk_exceptions

from .bare_worker import BareWorker, run_script


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareWorker]:
    with BareWorker(tmp_path_factory.mktemp("worker")) as running:
        yield running


def send(exc: BaseException) -> BaseException:
    """Take an exception through bytes, as the wire does."""
    header, buffers = agent_exceptions.dumps(exc)
    return sdk_exceptions.loads(json.loads(json.dumps(header)), [bytearray(buffer) for buffer in buffers])


class Odd(Exception):
    """Its `__init__` takes something else than what `args` holds."""

    def __init__(self, path: str, *, code: int) -> None:
        super().__init__(f"cannot open {path}")
        self.code = code


class OddNew(Exception):
    def __new__(cls, one: Any, two: Any) -> Self:
        return super().__new__(cls, one)

    def __init__(self, one: Any, two: Any) -> None:
        super().__init__(one)
        self.two = two


class OddFile(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "not there", path)


class Reducing(Exception):
    def __init__(self, one: Any) -> None:
        super().__init__("a", one)

    def __reduce__(self) -> Any:
        return Reducing, (self.args[1],)


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class BadReduce(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


def with_unsendable_type() -> Exception:
    lock = threading.Lock()

    class Unsendable(Exception):
        def use(self) -> Any:
            return lock

    return Unsendable("held")


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("a", 1),
        KeyError("k"),
        Odd("/x", code=4),
        OddNew(1, 2),
        OddFile("/y"),
        Reducing(5),
        FileNotFoundError(2, "nope", "name"),
        OSError(28, "full", "a", None, "b"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        SyntaxError("bad", ("file.py", 1, 2, "text", 1, 3)),
        ImportError("no", name="n", path="p"),
        ModuleNotFoundError("no", name="n"),
        StopIteration(3),
        KeyboardInterrupt(),
        errors.OutOfMemory("out", hint="more", limit_bytes=5),
        errors.EnvironmentBuildError("failed", log="words"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_type_and_state_are_kept(exc: BaseException) -> None:
    """Type, `args`, text, attributes and notes arrive, without `__init__` being called again."""
    exc.add_note("a note")
    if not isinstance(exc, Reducing):  # which says itself what is kept
        exc.extra = {"k": [1]}  # type: ignore[attr-defined]
    there = send(exc)
    assert type(there) is type(exc)
    assert there.args == exc.args
    assert str(there) == str(exc)
    assert vars(there) == vars(exc)
    for name in (
        "errno",
        "filename",
        "filename2",
        "start",
        "reason",
        "lineno",
        "offset",
        "name",
        "path",
        "value",
        "code",
    ):
        assert getattr(there, name, None) == getattr(exc, name, None)


def test_an_exception_that_refers_to_itself_arrives() -> None:
    """Attributes may refer to the exception, and to others whose `__init__` takes something else than `args`."""
    exc = Odd("/x", code=1)
    exc.me, exc.other = exc, Odd("/y", code=2)  # type: ignore[attr-defined]
    there: Any = send(exc)
    assert there.me is there
    assert there.other.code == 2


def test_the_chain_is_kept_and_cycles_end() -> None:
    """Causes, contexts and suppression arrive; a chain that bites its tail does too."""
    first, second, third = ValueError(1), Odd("/x", code=2), KeyError(3)
    first.__cause__, first.__context__ = second, third
    second.__context__, second.__suppress_context__ = third, True
    third.__cause__ = first
    there = send(first)
    assert isinstance(there.__cause__, Odd)
    assert isinstance(there.__context__, KeyError)
    assert there.__cause__.__context__ is there.__context__
    assert there.__cause__.__suppress_context__
    assert there.__context__.__cause__ is there


def test_a_long_chain_is_bounded() -> None:
    """A chain of thousands arrives in part, and the frame's header stays small."""
    exc: BaseException = ValueError("x" * 1000)
    first = exc
    for number in range(5000):
        exc.__context__ = ValueError(f"{number}" + "x" * 1000)
        exc = exc.__context__
    header, _ = agent_exceptions.dumps(first)
    assert len(json.dumps(header)) < 3 << 20
    assert isinstance(send(first).__context__, ValueError)


def test_groups_arrive_with_their_members() -> None:
    """Members keep their own types, chains and places; one whose type cannot travel has a stand-in."""
    cause = OSError(5, "disk")
    member = Odd("/x", code=1)
    member.__cause__ = cause
    group = ExceptionGroup("all", [member, with_unsendable_type(), ExceptionGroup("inner", [KeyError(1)])])
    group.add_note("n")
    there = send(group)
    assert isinstance(there, ExceptionGroup)
    assert there.message == "all"
    assert there.__notes__ == ["n"]
    assert [type(one) for one in there.exceptions] == [Odd, RemoteError, ExceptionGroup]
    assert isinstance(there.exceptions[0].__cause__, OSError)
    assert there.split(KeyError)[0] is not None
    assert type(send(BaseExceptionGroup("b", [KeyboardInterrupt()]))) is BaseExceptionGroup


def test_an_exception_that_cannot_be_pickled_is_named() -> None:
    """If not even its type travels, a `SerializationError` names it and why; the cause has its text and frames."""
    try:
        raise with_unsendable_type()
    except Exception as caught:
        there = send(caught)
    assert isinstance(there, SerializationError)
    assert "Unsendable" in there.message
    assert "_thread.lock" in there.message
    assert isinstance(there.__cause__, RemoteError)
    assert there.__cause__.type_name.endswith("Unsendable")
    assert "held" in there.__cause__.message
    assert "raise with_unsendable_type()" in there.__cause__.traceback_text
    assert there.__cause__.__traceback__ is not None


def test_in_a_chain_only_what_cannot_travel_is_replaced() -> None:
    """A cause whose type cannot travel becomes a `RemoteError`; the exception after it keeps its type."""
    exc = ValueError(1)
    exc.__cause__ = with_unsendable_type()
    there = send(exc)
    assert type(there) is ValueError
    assert isinstance(there.__cause__, RemoteError)


@pytest.mark.parametrize("exc", [Wordless(), BadReduce()], ids=["no words", "no reduce"])
def test_an_exception_s_own_methods_break_nothing(exc: BaseException) -> None:
    """`__str__`, `__repr__` and `__reduce__` that raise, even `SystemExit`, do not get out."""
    there = send(exc)
    assert type(there) is type(exc)


def test_a_type_that_the_caller_lacks_is_told_in_words(tmp_path: Path) -> None:
    """`RemoteError` has the name, the message, the notes and the traceback with source lines."""
    (tmp_path / "lacking.py").write_text(
        "class Lost(Exception):\n    pass\ndef fail():\n    try:\n        1 / 0\n    except Exception as e:\n"
        "        x = Lost('gone')\n        x.add_note('noted')\n        raise x from e\n"
    )
    with BareWorker(tmp_path, tmp_path) as worker:

        def f() -> None:
            import lacking  # type: ignore[import-not-found]

            lacking.fail()

        with pytest.raises(RemoteError) as caught:
            worker.call(f)
    error = caught.value
    assert error.type_name == "lacking.Lost"
    assert "gone" in error.message
    assert error.__notes__ == ["noted"]
    assert isinstance(error.__cause__, ZeroDivisionError)
    text = error.traceback_text
    assert (
        text.index("ZeroDivisionError: division by zero")
        < text.index("direct cause")
        < text.index("lacking.Lost: gone")
    )
    assert "    raise x from e" in "".join(traceback.format_exception(error))
    assert "    raise x from e" in text
    assert ", in f\n    lacking.fail()" in text, "lines of the function are the caller's"


def test_remote_frames_are_in_the_traceback(worker: BareWorker) -> None:
    """The frames are those of the function, with file, line, name and columns; the agent's are cut."""

    def inner(x: int) -> float:
        return x + (1 / (x - x))

    def outer() -> float:
        return inner(3)

    with pytest.raises(ZeroDivisionError) as caught:
        worker.call(outer)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.name for frame in frames[-2:]] == ["outer", "inner"]
    assert frames[-1].filename == __file__
    assert frames[-1].line == "return x + (1 / (x - x))"
    assert not any("/agent/" in frame.filename or "lib/atoll" in frame.filename for frame in frames)
    text = "".join(traceback.format_exception(caught.value))
    assert "            ~~^~~~~~~~~" in text
    assert frames[-3].name == "call", "the caller's own frames come first"


@pytest.mark.parametrize("lines", [0, 1, 63, 64, 5000])
def test_a_frame_begins_where_its_function_does(lines: int, worker: BareWorker) -> None:
    """Programs that show a whole function, as pytest does, find its first line and mark the failing one."""
    source = "def f():\n" + "    pass\n" * lines + "    return (\n        1 / 0\n    )\n"
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile("\n\n" + source, "<source>", "exec"), space)
    with pytest.raises(ZeroDivisionError) as caught:
        worker.call(space["f"])
    (*_, entry) = traceback.walk_tb(caught.value.__traceback__)
    code = entry[0].f_code
    assert (code.co_firstlineno, entry[1], entry[0].f_lineno) == (3, 5 + lines, 5 + lines)
    assert {position[0] for position in code.co_positions()} == {5 + lines}
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.colno, frame.end_colno) == (8, 13)


def test_the_interpreter_prints_remote_frames_and_lines_it_does_not_have(tmp_path: Path) -> None:
    """An uncaught exception shows the lines of a module that only the worker has, carets included."""
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "thirdparty.py").write_text("def divide(x):\n    y = x\n    return y / (x - x)\n")
    out = run_script(
        tmp_path,
        """
import pathlib, sys, traceback
from tests.unit.bare_worker import BareWorker
def f():
    import thirdparty
    return thirdparty.divide(1)
here = pathlib.Path(sys.argv[1])
with BareWorker(here, here / "env") as worker:
    try:
        worker.call(f)
    except ZeroDivisionError as error:
        (here / "env" / "thirdparty.py").unlink()
        caught = error
import linecache
linecache.clearcache()
sys.stderr = sys.stdout
try:
    with BareWorker(here, here / "env") as worker:
        (here / "env" / "thirdparty.py").write_text("def divide(x):\\n    y = x\\n    return y / (x - x)\\n")
        try:
            worker.call(f)
        finally:
            (here / "env" / "thirdparty.py").unlink()
except ZeroDivisionError:
    sys.__excepthook__(*sys.exc_info())
""",
        str(tmp_path),
    )
    assert re.search(r"    return thirdparty\.divide\(1\)\n {11}[~^]{20}\n", out)
    assert ", line 3, in divide\n" in out


def test_source_lines_of_absent_files_are_kept_in_linecache() -> None:
    """A line that only the worker has is shown, and survives `linecache.checkcache`."""
    name = "/nowhere/at/all/module.py"
    node = json.loads(json.dumps(agent_exceptions.dumps(ValueError(1))[0]))
    node["exceptions"][0]["frames"] = [
        [name, 7, "g", "    fail(1)", 7, 4, 11],
        [name, 3, "h", "  deeper", None, None, None],
    ]
    buffers = agent_exceptions.dumps(ValueError(1))[1]
    there = sdk_exceptions.loads(node, buffers)
    linecache.checkcache()
    text = "".join(traceback.format_exception(there))
    assert f'File "{name}", line 7, in g\n    fail(1)\n' in text
    assert f'File "{name}", line 3, in h\n    deeper\n' in text
    assert there.__traceback__ is not None
    assert there.__traceback__.tb_frame.f_code.co_filename == name


def test_a_cell_of_a_notebook_keeps_its_lines() -> None:
    """Code whose lines the caller's `linecache` holds is shown with those."""
    name = "<cell 1>"
    linecache.cache[name] = (10, None, ["def f():\n", "    return 1 / 0\n"], name)
    space: dict[str, Any] = {}
    exec(compile("".join(linecache.getlines(name)), name, "exec"), space)
    try:
        space["f"]()
    except ZeroDivisionError as error:
        there = send(error)
    assert "    return 1 / 0\n" in "".join(traceback.format_exception(there))


def test_a_deep_recursion_arrives(worker: BareWorker) -> None:
    """A `RecursionError` comes back with frames from both ends."""

    def f(n: int) -> int:
        return f(n + 1) + 1

    with pytest.raises(RecursionError) as caught:
        worker.call(f, 0)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert 100 < len(frames) < 3 * agent_exceptions.MOST_FRAMES
    assert frames[-1].name == "f"


def test_large_messages_do_not_burst_the_header() -> None:
    """A message of any length arrives whole, while the header keeps a part of it."""
    exc = ValueError("\u20ac" * 30_000_000)
    header, buffers = agent_exceptions.dumps(exc)
    assert len(json.dumps(header)) < 1 << 20
    there = sdk_exceptions.loads(header, buffers)
    assert there.args == exc.args


def test_classes_of_the_program_are_caught_by_their_own_type(tmp_path: Path) -> None:
    """An exception class of `__main__` is the caller's own class again, in worker-made chains too."""
    run_script(
        tmp_path,
        """
import pathlib, sys
from tests.unit.bare_worker import BareWorker
class Mine(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a}{b}")
        self.a = a
def f():
    try:
        raise Mine(1, 2)
    except Mine as error:
        raise KeyError("k") from error
with BareWorker(pathlib.Path(sys.argv[1])) as worker:
    try:
        worker.call(f)
    except KeyError as error:
        assert type(error.__cause__) is Mine and error.__cause__.a == 1
    else:
        raise SystemExit("nothing was raised")
""",
        str(tmp_path),
    )


def test_system_exit_in_a_chain_arrives() -> None:
    """What the worker itself does with `SystemExit` is not decided here; as a context it is kept."""
    exc = ValueError(1)
    exc.__context__ = SystemExit(3)
    there = send(exc)
    assert isinstance(there.__context__, SystemExit)
    assert there.__context__.code == 3


def test_a_python_without_groups_and_columns_describes_its_exceptions(tmp_path: Path) -> None:
    """Before Python 3.11 there are neither; an exception is described with its chain and lines all the same."""
    out = run_script(
        tmp_path,
        """
import builtins, sys, types
from atoll.payload import exceptions_dump as exceptions, pickling
pickling.cloudpickle()
def fail():
    try:
        1 / 0
    except ZeroDivisionError as error:
        raise KeyError("k") from error
def old(code):
    return types.SimpleNamespace(**{name: getattr(code, name) for name in dir(code) if name != "co_positions"})
def old_entry(entry):
    if entry is None:
        return None
    frame = types.SimpleNamespace(f_code=old(entry.tb_frame.f_code), f_globals=entry.tb_frame.f_globals)
    return types.SimpleNamespace(tb_frame=frame, tb_lineno=entry.tb_lineno, tb_lasti=entry.tb_lasti, tb_next=None)
from atoll.payload import tracebacks
walk = tracebacks.entries
tracebacks.entries = lambda traceback: map(old_entry, walk(traceback))
groups = builtins.BaseExceptionGroup, builtins.ExceptionGroup
del builtins.BaseExceptionGroup, builtins.ExceptionGroup
try:
    fail()
except KeyError as error:
    header, buffers = exceptions.dumps(error)
builtins.BaseExceptionGroup, builtins.ExceptionGroup = groups
from atoll.payload import exceptions_load as sdk
there = sdk.loads(header, buffers)
print(type(there), type(there.__cause__), header["exceptions"][0]["frames"][-1][1:])
""",
    )
    assert out == (
        "<class 'KeyError'> <class 'ZeroDivisionError'> "
        "[9, 'fail', '        raise KeyError(\"k\") from error', None, None, None, 5]\n"
    )
