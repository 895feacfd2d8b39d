"""Arguments and results arrive as they were, and what cannot travel is named."""

from __future__ import annotations

import pickle
import re
import threading
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import SerializationError
from atoll.payload import functions, pickling
from atoll.payload import values as agent_payload
from atoll.payload.functions import FunctionPickler

from .bare_worker import BareWorker


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareWorker]:
    with BareWorker(tmp_path_factory.mktemp("worker")) as running:
        yield running


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner)
        | st.sets(KEYS)
        | st.frozensets(KEYS)
        | st.builds(bytearray, st.binary())
    ),
    max_leaves=40,
)


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return dict, [(type(key), _types(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [_types(item) for item in value]
    return type(value)


@given(st.lists(VALUES, max_size=4), st.dictionaries(st.text(), VALUES, max_size=3))
def test_arguments_arrive_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    """Values, types and order of built-in data survive, on the fast path and on the other."""
    data, buffers = functions.dumps_arguments(tuple(args), kwargs)
    there = agent_payload.loads_arguments(bytearray(data), [bytearray(buffer) for buffer in buffers])
    assert there == (tuple(args), kwargs)
    assert _types(there) == _types((tuple(args), kwargs))
    result, pieces = agent_payload.dumps_result(args)
    assert functions.loads_result(bytearray(result), pieces) == args


def test_subclasses_of_built_in_types_keep_their_type(worker: BareWorker) -> None:
    """The fast path takes exact types only."""
    from collections import OrderedDict, namedtuple

    pair = namedtuple("pair", "a b")  # noqa: PYI024
    there = worker.call(lambda *args: args, OrderedDict(a=1), True, pair(1, 2))
    assert [type(value) for value in there] == [OrderedDict, bool, pair]


class Blob:
    """Pickles its memory out of band, as an array does."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Blob, (pickle.PickleBuffer(self.memory),)


@pytest.mark.parametrize("size", [0, 100, 5000, 3_000_000])
def test_buffers_cross_out_of_band_and_are_writable(size: int, worker: BareWorker) -> None:
    """Large memory leaves the pickle, arrives equal, and can be written to on both sides; small memory stays in it."""

    def change(blob: Any) -> Any:
        view = memoryview(blob.memory)
        assert not view.readonly
        view[0:1] = b"!"[: view.nbytes]
        return blob

    source = bytearray(b"x" * size)
    pickler = FunctionPickler(change)
    pickler.dumps()
    data, buffers = pickler.dumps_arguments((Blob(source),), {})
    assert (len(buffers) == 1) == (size >= 5000)
    assert all(view.obj is source for view in buffers), "no copy is made"
    assert len(data) < 4000
    there = worker.call(pickler, Blob(source))
    assert type(there) is Blob
    assert bytes(there.memory) == (b"!" + b"x" * (size - 1) if size else b"")
    assert not memoryview(there.memory).readonly
    assert bytes(source) == b"x" * size


class Broken:
    def __reduce__(self) -> Any:
        raise KeyError("reduce")


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((1, threading.Lock()), {}, ["`b`", "`_thread.lock`"]),
        ((), {"c": threading.Lock()}, ["`c`", "`_thread.lock`"]),
        ((1, 2, 3, 4, threading.Lock()), {}, ["`rest[1]`", "`_thread.lock`"]),
        (({"k": [1, {"m": threading.Lock()}]},), {}, ["`a`", "a `dict`", "`a['k'][1]['m']` is a `_thread.lock`"]),
        ((types.SimpleNamespace(x=(i for i in "a")),), {}, ["`a`", "generator"]),
        ((Broken(),), {}, ["`a`", "Broken", "reduce"]),
        ((_deep(),), {}, ["`a`", "a `list`", "recursion"]),
    ],
)
def test_an_argument_that_cannot_travel_is_named(args: Any, kwargs: Any, words: list[str]) -> None:
    """The error says which argument, of what type, and what in it is to blame; the cause is kept."""

    def f(a: Any, b: Any = None, c: Any = None, *rest: Any) -> None: ...

    with pytest.raises(SerializationError) as caught:
        functions.dumps_arguments(args, kwargs, function=f)
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
    assert caught.value.__cause__ is not None


def test_the_cause_of_a_refusal_is_short() -> None:
    """The cause shows one line, or where a reducer of the user's raised, its frames; the picklers' are dropped."""
    space: dict[str, Any] = {"lock": threading.Lock(), "__name__": "__main__"}
    exec("def f(): return lock", space)

    class Slotted:
        __slots__ = ("a",)

        def __reduce__(self) -> Any:
            return super().__reduce__()

    attempts: list[tuple[Any, list[str]]] = [
        (lambda: functions.dumps_arguments((threading.Lock(),), {}), []),
        (lambda: functions.dumps_arguments((_deep(),), {}), []),
        (lambda: FunctionPickler(space["f"]).dumps(), []),
        (lambda: functions.loads_result(b"nonsense"), []),
        (lambda: functions.dumps_arguments((Broken(),), {}), ["__reduce__"]),
        (lambda: functions.dumps_arguments((Slotted(),), {}), ["__reduce__"]),
    ]
    for attempt, frames in attempts:
        with pytest.raises(SerializationError) as caught:
            attempt()
        cause = caught.value.__cause__
        assert cause is not None
        shown = "".join(traceback.format_exception(cause))
        assert [frame.name for frame in traceback.extract_tb(cause.__traceback__)] == frames
        assert len(shown.splitlines()) <= 9, shown
        assert "cloudpickle" not in shown


def test_an_argument_without_a_name_is_counted() -> None:
    """Where the function's signature is not known the position is given."""
    with pytest.raises(SerializationError, match="the argument `1` cannot be sent"):
        functions.dumps_arguments((1, threading.Lock()), {})


@pytest.mark.parametrize("make", [threading.Lock, Broken, lambda: (i for i in "a"), _deep])
def test_a_result_that_cannot_travel_is_named(make: Any, worker: BareWorker) -> None:
    """The error names the result's type, and the worker goes on."""
    with pytest.raises(SerializationError, match="result"):
        worker.call(make)
    assert worker.call(lambda: 1) == 1


def test_a_result_whose_module_is_missing_here_is_named(tmp_path: Path) -> None:
    """The error names the module that the caller lacks."""
    (tmp_path / "only_there.py").write_text("class C: pass\ndef make(): return C()\n")
    with BareWorker(tmp_path, tmp_path) as worker:

        def f() -> Any:
            import only_there  # type: ignore[import-not-found]

            return only_there.C()

        with pytest.raises(SerializationError, match="no module `only_there`") as caught:
            worker.call(f)
        assert "install" in caught.value.hint


def test_an_argument_whose_class_is_gone_is_named(worker: BareWorker) -> None:
    """What cannot be found in the worker is an error of the call with its cause."""
    data, _ = pickling.dumps(((), {}))
    with pytest.raises(SerializationError, match="arguments"):
        agent_payload.loads_arguments(data[:-3])


def test_many_small_buffers_stay_in_the_pickle() -> None:
    """A frame's limit on the number of buffers is never met."""
    data, buffers = pickling.dumps([Blob(bytearray(3000)) for _ in range(3)])
    assert len(buffers) == 3
    whole = pickling.dumps([Blob(bytearray(10)) for _ in range(100)])
    assert whole[1] == []
    assert len(pickling.loads(data, buffers)) == 3


def test_an_exception_that_is_a_result_is_not_initialised_again(worker: BareWorker) -> None:
    """An exception whose `__init__` takes something else than `args` is a result like any other."""

    class Odd(Exception):
        def __init__(self, code: int, *, name: str) -> None:
            super().__init__(f"{name} has {code}")
            self.code = code

    there = worker.call(lambda: [Odd(3, name="x")])[0]
    assert type(there) is Odd
    assert (there.args, there.code) == (("x has 3",), 3)


SLOTTED = """
import dataclasses, abc, typing, collections
class Plain:
    __slots__ = ("a",)
class Text:
    __slots__ = "a"
class Listed:
    __slots__ = ["a", "__weakref__"]
class Documented:
    __slots__ = {"a": "what it holds"}
class Viewed:
    __slots__ = {"a": 1}.keys()
class Private:
    __slots__ = ("__a",)
    a = property(lambda self: self.__a, lambda self, value: setattr(self, "_Private__a", value))
class WithDict:
    __slots__ = ("a", "__dict__")
class Inherits(Plain):
    __slots__ = ("b",)
class Opens(Plain):
    pass
class Empty(Plain):
    __slots__ = ()
class Repeats(Plain):
    __slots__ = Plain.__slots__
class Abstract(abc.ABC):
    __slots__ = ("a",)
class Typed(typing.Generic[typing.TypeVar("T")]):
    __slots__ = ("a",)
class Later:
    pass
Later.__slots__ = ("a",)
@dataclasses.dataclass(slots=True)
class Data:
    a: int = 5
@dataclasses.dataclass(slots=True, frozen=True, weakref_slot=True)
class Frozen:
    a: int = 5
class Pair(typing.NamedTuple):
    a: int = 5
def make(cls):
    made = cls()
    if cls not in (Frozen, Pair):
        made.a = 5
    return made
def f(value, name):
    return [value, make(NAMED[name]), hasattr(value, "__dict__"), value.a]
NAMED = {name: cls for name, cls in globals().items() if isinstance(cls, type)}
"""


@pytest.fixture(scope="module")
def slotted() -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SLOTTED, "<prompt>", "exec"), space)
    return space


@pytest.mark.parametrize("name", re.findall(r"^class (\w+)", SLOTTED, re.MULTILINE))
def test_instances_of_classes_with_slots_go_and_come_back(
    name: str, slotted: dict[str, Any], worker: BareWorker
) -> None:
    """A class of the program has its `__slots__` in the worker, and only those: its objects look there as here."""
    cls = slotted[name]
    value = slotted["make"](cls)
    there, made, has_dict, a = worker.call(slotted["f"], value, name)
    assert (type(there), type(made)) == (cls, cls)
    assert (there.a, made.a, a) == (5, 5, 5)
    assert has_dict == hasattr(value, "__dict__")
