"""A part of an exception that cannot travel costs that part: type, text and everything else arrive."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import email.message
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import traceback
import types
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import atoll
from atoll.environments.built.interpreter import find
from atoll.errors import EnvironmentBuildError, RemoteError, SerializationError
from atoll.model.specs import EnvironmentSpec
from atoll.payload import exceptions_dump, exceptions_load, untrusted
from atoll.payload.exception_text import is_same

from .test_exceptions_chain import send


class Resource:
    """Its finalizer needs a part that cannot travel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __del__(self) -> None:
        self.lock.acquire()


class Request:
    def __init__(self) -> None:
        self.url = "http://host/"
        self.body = (part for part in (b"",))


class WithFields(Exception):
    def __init__(self, **fields: Any) -> None:
        super().__init__("text")
        vars(self).update(fields)


class Validating(Exception):
    def __init__(self, *, number: int) -> None:
        if not isinstance(number, int):
            raise TypeError("no number")
        super().__init__()
        self.number = number
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return f"number {self.number}"


class Slotted(Exception):
    __slots__ = ("lock", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()


class LateErrno(OSError):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno, self.filename = 7, "/f"


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    number: int
    lock: Any = dataclasses.field(default_factory=threading.Lock, compare=False)


class BadGetState(Exception):
    def __getstate__(self) -> Any:
        raise RuntimeError("no state")


class BadSetState(Exception):
    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("no state")


class Nonsense(Exception):
    def __reduce__(self) -> Any:
        return 42


class AnotherType(Exception):
    def __reduce__(self) -> Any:
        return ValueError, ("other",)


class BadGetAttr(Exception):
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class LosesText(Exception):
    """As urllib3's errors: its pickles leave out the parts of its text."""

    def __init__(self, pool: Any, message: Any) -> None:
        super().__init__(f"{pool}: {message}")
        self.pool = pool
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return LosesText, (None, None)


class Local(Exception):
    """Its text is of the process that it is in."""

    def __str__(self) -> str:
        return f"in {id(self)}"


class LocalFile(OSError):
    def __str__(self) -> str:
        return f"in {id(self)}"


class Final(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("no class below this one")

    def __str__(self) -> str:
        return f"in {id(self)}"


class LocalRepr:
    def __repr__(self) -> str:
        return f"local {id(self)}"


class Group(ExceptionGroup[Exception]):
    pass


def http_error() -> urllib.error.HTTPError:
    headers = email.message.Message()
    headers["retry-after"] = "5"
    read, write = os.pipe()
    os.close(write)
    return urllib.error.HTTPError("http://host/", 503, "Unavailable", headers, os.fdopen(read, "rb"))


@pytest.fixture
def error() -> Iterator[urllib.error.HTTPError]:
    made = http_error()
    yield made
    made.close()


def test_an_http_error_keeps_its_type_and_code(error: urllib.error.HTTPError) -> None:
    """The open answer of a server is lost, and a note tells it; closing the error is quiet."""
    there: Any = send(error)
    assert type(there) is urllib.error.HTTPError
    assert (str(there), there.code, there.url, there.headers["retry-after"]) == (
        "HTTP Error 503: Unavailable",
        503,
        "http://host/",
        "5",
    )
    (note,) = there.__notes__
    assert "`fp` and `file` (`_io.BufferedReader`" in note
    with pytest.raises(AttributeError, match=r"`_io.BufferedReader` did not come with its exception"):
        there.read()
    there.close()
    assert note in "".join(traceback.format_exception(there))


@pytest.mark.parametrize(
    ("exc", "lost"),
    [
        (WithFields(lock=threading.Lock(), kept=[1]), "`lock`"),
        (WithFields(peers=[1, {"a": threading.Lock()}]), "`peers`"),
        (WithFields(frame=sys._getframe()), "`frame`"),
        (WithFields(items=(x for x in range(1))), "`items`"),
        (WithFields(callback=lambda lock=threading.Lock(): lock), "`callback`"),
        (ValueError("bad", threading.Lock()), "argument 2"),
        (KeyError(threading.Lock()), "argument 1"),
        (Validating(number=3), "`lock`"),
        (Slotted(3), "`lock`"),
        (Frozen(3), "`lock`"),
        (BadGetState("x"), ""),
        (BadSetState("x"), ""),
        (Nonsense("x"), ""),
        (AnotherType("x"), ""),
        (LateErrno("x"), ""),
        (BadGetAttr("x"), ""),
        (LosesText("pool", "message"), "`lock`"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_part_costs_itself(exc: Any, lost: str) -> None:
    """Type and text stay; a note names the part that was lost, and why."""
    there = send(exc)
    assert type(there) is type(exc)
    assert is_same(str(there), str(exc))
    notes = vars(there).get("__notes__", [])
    assert len(notes) == bool(lost)
    assert not lost or lost in notes[0]
    for name in ("number", "kept", "errno", "filename", "pool"):
        assert vars(there).get(name) == vars(exc).get(name)
    assert type(send(there)) is type(exc), "it may travel on"


def test_an_object_keeps_its_other_attributes() -> None:
    """A request loses its body alone; an object with a finalizer is lost as a whole, which its finalizer wants."""
    there: Any = send(WithFields(request=Request(), resource=Resource()))
    assert there.request.url == "http://host/"
    with pytest.raises(AttributeError, match="generator"):
        there.request.body.throw(ValueError)
    with pytest.raises(AttributeError, match="Resource"):
        there.resource.lock.acquire()


def test_a_socket_and_a_group_and_a_deep_list() -> None:
    """A group keeps its type without an attribute; a list that is too deep for any pickler is lost as one argument."""
    with socket.socket() as peer:
        group = Group("all", [WithFields(peer=peer), ValueError(1)])
        group.lock = threading.Lock()  # type: ignore[attr-defined]
        there = send(group)
    assert type(there) is Group
    assert "`lock`" in there.__notes__[0]
    assert "`peer`" in there.exceptions[0].__notes__[0]
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    found = send(ValueError("deep", deep))
    assert type(found) is ValueError
    assert found.args[0] == "deep"


@pytest.mark.parametrize("exc", [Local(), LocalFile(2, "gone"), ValueError(LocalRepr())])
def test_the_text_is_the_one_that_was_sent(exc: Exception) -> None:
    """Where the type makes another text here, the received one is shown, printed and pickled on."""
    text = str(exc)
    there = send(exc)
    assert isinstance(there, type(exc))
    assert type(there).__name__ == type(exc).__name__
    assert str(there) == text
    assert text in traceback.format_exception(there)[-1]
    assert getattr(there, "errno", None) == getattr(exc, "errno", None)
    for again in (pickle.loads(pickle.dumps(there)), copy.copy(there), send(there)):
        assert isinstance(again, type(exc))
        assert str(again) == text


def test_a_text_without_a_class_for_it_is_a_note() -> None:
    """A type that allows no class below it keeps its own text, and a note has the one that was sent."""
    exc = Final()
    there = send(exc)
    assert type(there) is Final
    assert str(exc) in there.__notes__[0]


def module_of_another_machine() -> types.ModuleType:
    made = types.ModuleType("of_another_machine")
    source = (
        "class Number:\n def __init__(self): self.x = 1\n def __repr__(self): return 'Number(1)'\n"
        "class DiskError(OSError): pass\nclass Odd(KeyError):\n def __init__(self, a, *, b): super().__init__(a)\n"
    )
    exec(source, made.__dict__)
    return made


def from_another_machine(monkeypatch: pytest.MonkeyPatch, make: Any) -> BaseException:
    with monkeypatch.context() as patch:
        module = module_of_another_machine()
        patch.setitem(sys.modules, module.__name__, module)
        header, buffers = exceptions_dump.dumps(make(module))
    return exceptions_load.loads(header, buffers)


def test_an_argument_whose_type_is_missing_here_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `ValueError` of a NumPy number is a `ValueError` for a caller without NumPy, with its text."""
    there = from_another_machine(monkeypatch, lambda module: ValueError(module.Number()))
    assert isinstance(there, ValueError)
    assert str(there) == "Number(1)"
    assert "of_another_machine.Number" in there.__notes__[0]


def test_a_missing_type_is_caught_by_those_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`except OSError` catches the error of a library that the caller lacks, as it would in one program."""
    there = from_another_machine(monkeypatch, lambda module: module.DiskError(28, "full"))
    assert isinstance(there, RemoteError)
    assert isinstance(there, OSError)
    assert (there.type_name, there.errno) == ("of_another_machine.DiskError", 28)
    assert "of_another_machine.DiskError: [Errno 28] full" in str(there)
    again = pickle.loads(pickle.dumps(there))
    assert isinstance(again, OSError)
    assert str(again) == str(there)
    odd = from_another_machine(monkeypatch, lambda module: module.Odd("k", b=1))
    assert isinstance(odd, RemoteError)
    assert isinstance(odd, KeyError)


class SlotsWithNone(Exception):
    """As NumPy's `AxisError`."""

    __slots__ = ("axis", "message")

    def __init__(self, axis: int) -> None:
        self.axis, self.message = axis, None

    def __str__(self) -> str:
        return self.message or f"axis {self.axis}"


def test_an_empty_slot_and_one_with_none_are_told_apart() -> None:
    """A slot that holds None holds it again; its exception keeps the very type."""
    there: Any = send(SlotsWithNone(5))
    assert type(there) is SlotsWithNone
    assert (str(there), there.message) == ("axis 5", None)


class Shy(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class Bare(Exception):
    __dict__ = property(lambda _: 1 / 0)


@pytest.mark.parametrize("kind", [Shy, Bare])
def test_an_exception_that_refuses_to_be_looked_at_is_told_in_words(kind: type[Exception]) -> None:
    """Its name, text and frames arrive; nothing of its own methods gets out."""
    try:
        raise kind("text")
    except kind as raised:
        header, buffers = exceptions_dump.dumps(raised)
        plainly = exceptions_dump.dumps(raised, plain=True)
    there = exceptions_load.loads(header, buffers)
    assert isinstance(there, SerializationError)
    assert isinstance(there.__cause__, RemoteError)
    assert f"{kind.__name__}: text" in there.__cause__.message
    assert 'raise kind("text")' in there.__cause__.traceback_text
    assert isinstance(untrusted.loads_exception(*plainly), RemoteError)


OLDER = """
import json, sys, threading
sys.path.insert(0, sys.argv[1])
from atoll.payload import exceptions_dump, exceptions_load, untrusted
try:
    error = ValueError("text")
    error.lock = threading.Lock()
    raise error
except ValueError as raised:
    header, buffers = exceptions_dump.dumps(raised)
there = exceptions_load.loads(json.loads(json.dumps(header)), buffers)
assert isinstance(there, ValueError) and there.__traceback__.tb_lineno == 8, there
print(there)
print(*getattr(there, "__notes__", ()))
"""


def test_an_older_python_reads_exceptions(tmp_path: Path) -> None:
    """Python 3.10, where functions may call others, prints no notes: the text has them."""
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    try:
        found = asyncio.run(find(EnvironmentSpec(python_version="3.10", interpreter=base))).executable
    except EnvironmentBuildError:
        pytest.skip("this machine has no Python 3.10")
    package = Path(atoll.__file__).parent
    shutil.copytree(package, tmp_path / "atoll", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(cloudpickle.__file__).parent / "cloudpickle.py", tmp_path / "_atoll_cloudpickle.py")
    done = subprocess.run([found, "-c", OLDER, str(tmp_path)], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("text\natoll: not sent with this exception: `lock`")
