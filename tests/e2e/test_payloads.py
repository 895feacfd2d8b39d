"""Payloads from end to end: large ones through shared memory, and plain data in place of pickles."""

from __future__ import annotations

import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from atoll import errors, isolated
from atoll.wire.payload_channel import free_bytes

from ..waiting import soak

pytestmark = pytest.mark.usefixtures("shared_home")

PACKAGES = [f"numpy=={np.__version__}", f"pandas=={pd.__version__}", f"pyarrow=={pa.__version__}"]
SIZES = [0, 100_000, (1 << 20) - 8, 1 << 20, 8_000_000, 100 << 20]


@isolated(requirements=PACKAGES)
def back(value: Any) -> Any:
    return value


@isolated(requirements=PACKAGES)
def change(array: Any) -> tuple[bool, float, bool]:
    import mmap as maps

    owner = array
    while getattr(owner, "base", None) is not None:
        owner = owner.base
    mapped = isinstance(owner.obj if isinstance(owner, memoryview) else owner, maps.mmap)
    array += 1
    return array.flags.writeable, float(array.sum()), mapped


@isolated
def content(kind: str, size: int) -> Any:
    if kind == "bytes":
        return b"x" * size
    if kind == "bytearray":
        return bytearray(b"x") * size
    if kind == "str":
        return "é" * (size // 2)
    return [float(n) for n in range(size // 9)]


@isolated(results="data")
def evaluate(expression: str) -> Any:
    import datetime as dt  # noqa: F401 - for the expression

    return eval(expression)


def owner_of(array: Any) -> Any:
    while getattr(array, "base", None) is not None:
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


@pytest.mark.parametrize("size", SIZES)
def test_arrays_of_any_size_go_and_come_back(size: int) -> None:
    """What returns is equal, writable, and no view of what was sent."""
    array = np.arange(size // 8, dtype=np.int64)
    found = back(array)
    assert np.array_equal(found, array)
    assert found.flags.writeable
    if size:
        found[0] = -1
        assert array[0] == 0


def test_a_function_changes_its_own_copy_of_an_array() -> None:
    """Arguments are writable in the worker, lie in memory of its own, and the caller's stay as they are."""
    array = np.ones(4_000_000)
    writable, total, mapped = change(array)
    assert (writable, total, mapped) == (True, 8_000_000.0, True)
    assert array.sum() == 4_000_000


def test_the_memory_of_a_result_lives_as_long_as_the_result() -> None:
    """The map that a result lies in is there after later calls and their worker, and gone with the last view."""
    found = back(np.arange(1 << 20))
    assert isinstance(owner_of(found), mmap.mmap)
    part = found[1000:1010]
    others = [back(np.arange(1 << 20) + n) for n in range(3)]
    del found
    gc.collect()
    assert list(part) == list(range(1000, 1010))
    assert [int(other[0]) for other in others] == [0, 1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.asfortranarray(np.arange(600_000).reshape(600, 1000)),
        lambda: np.arange(4_000_000)[::2],
        lambda: np.arange(600_000).reshape(600, 1000).T,
        lambda: np.arange(600_000).reshape(6, 100, 1000)[:, ::-1, 5:],
        lambda: np.array([{"a": 1}, None], dtype=object),
        lambda: np.zeros(300_000, dtype=[("a", "i4"), ("b", "f8")]),
    ],
)
def test_arrays_of_any_layout_go_and_come_back(make: Any) -> None:
    """Order in memory, strides and types are no obstacle."""
    array = make()
    found = back({"one": [array, array]})
    assert np.array_equal(found["one"][0], array)
    assert found["one"][0] is found["one"][1]
    assert found["one"][0].flags.f_contiguous >= array.flags.f_contiguous


def test_frames_and_tables_go_and_come_back() -> None:
    """pandas and Arrow data arrive equal, in maps of memory."""
    frame = pd.DataFrame({"a": np.arange(400_000), "b": np.random.default_rng(1).random(400_000)})
    frame["c"] = frame["a"].astype(str)
    pd.testing.assert_frame_equal(back(frame), frame)
    table = pa.Table.from_pandas(frame)
    assert back(table).equals(table)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "str", "list"])
def test_large_values_that_are_no_arrays_come_back(kind: str) -> None:
    """Bytes, texts and lists of 64 MB and more are results like any other."""
    size = 70_000_000
    found = content(kind, size)
    if kind == "list":
        assert found[-1] == len(found) - 1 == size // 9 - 1
    else:
        assert (len(found.encode()) if kind == "str" else len(found)) == size


def test_many_large_pieces_in_one_value_arrive() -> None:
    """A value of many arrays, large and small, keeps them apart and in order."""
    arrays = [np.full(size, number) for number, size in enumerate((1, 300, 200_000, 5) * 12)]
    found = back(arrays)
    assert all(np.array_equal(one, other) for one, other in zip(found, arrays, strict=True))


def test_a_nested_call_carries_large_payloads() -> None:
    """A function that calls a function passes arrays as a program does."""

    @isolated(requirements=PACKAGES)
    def outer(size: int) -> Any:
        import numpy as np

        return back(np.arange(size)).sum()

    assert outer(1 << 20) == (1 << 20) * ((1 << 20) - 1) // 2


def test_calls_with_large_payloads_leave_no_descriptors_behind() -> None:
    """Large results that are kept cost no descriptor each."""
    keep = [back(np.zeros(200_000)) for _ in range(2)]
    before = len(os.listdir("/proc/self/fd"))
    keep += [back(np.zeros(200_000)) for _ in range(30)]
    after = len(os.listdir("/proc/self/fd"))
    assert after < before + 15, "more than those of another worker, which may have replaced the first"
    assert len(keep) == 32


def test_arguments_that_no_memory_can_hold_are_refused(tmp_path: Path) -> None:
    """An array on the disk that is larger than the machine's memory is an error of the call, and the next call works."""
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(free_bytes() * 2 // 8 * 8)
    array = np.memmap(tmp_path / "sparse", dtype="u8", mode="r")
    with pytest.raises(errors.SerializationError, match="MB are free"):
        back(np.asarray(array))
    assert back(1) == 1


def test_gigabytes_come_back() -> None:
    """A result of 1 GiB arrives; in the long form one larger than 32 bits can say, where the machine can hold it twice."""
    sizes = soak((1 << 30,), ((4 << 30) + (1 << 20), 1 << 30))
    size = next((size for size in sizes if free_bytes() > 2.6 * size), 0)
    if not size:
        pytest.skip("needs more free memory")

    @isolated(requirements=PACKAGES)
    def make(size: int) -> Any:
        import numpy as np

        array = np.zeros(size // 8, np.int64)
        array[-1] = 7
        return array

    found = make(size)
    assert (found.nbytes, int(found[-1])) == (size, 7)


# --- results="data" ------------------------------------------------------------------------------------------------


def test_plain_data_comes_back() -> None:
    """What plain data can say is a result as ever."""
    expression = "[None, True, 2**100, 1.5, 1j, 'x', b'y', (1, [2]), {3: {4}}, frozenset({5}), dt.date(2020, 1, 2)]"
    import datetime as dt  # noqa: F401 - for the expression

    assert evaluate(expression) == eval(expression)


def test_arrays_and_tables_are_plain_data() -> None:
    """Large ones too, and what arrives can be written to."""
    plain_back = back.on(results="data")
    array = np.arange(2_000_000.0).reshape(2000, 1000, order="F")
    found = plain_back({"a": array, "s": np.float32(1.5)})
    assert np.array_equal(found["a"], array)
    assert found["a"].flags.f_contiguous
    assert type(found["s"]) is np.float32
    found["a"][0, 0] = 5
    table = pa.table({"a": np.arange(1_000_000)})
    assert plain_back(table).equals(table)


def test_what_is_not_plain_data_is_an_error_that_names_it() -> None:
    """An object is no plain data, however harmless."""
    with pytest.raises(errors.SerializationError, match=r"`it\[1\]\['k'\]` is a `range`"):
        evaluate("[0, {'k': range(3)}]")
    assert evaluate("1") == 1


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_nothing_of_a_result_is_unpickled(tmp_path: Path) -> None:
    """Objects in results, in yielded items and in exceptions do not reach the caller as pickles."""
    path = str(tmp_path / "was-here")

    @isolated(results="data")
    def result() -> Any:
        return Bomb(path)

    @isolated(results="data")
    def raising() -> None:
        error = ValueError(Bomb(path))
        error.more = Bomb(path)  # type: ignore[attr-defined]
        raise error

    @isolated(results="data")
    def items() -> Iterator[Any]:
        yield 1
        yield Bomb(path)

    with pytest.raises(errors.SerializationError, match="Bomb"):
        result()
    with pytest.raises(errors.RemoteError, match="ValueError"):
        raising()
    found: list[Any] = []
    with pytest.raises(errors.SerializationError, match="Bomb"):
        found.extend(items())
    assert found == [1]
    assert not os.path.exists(path)


def test_a_worker_that_answers_with_pickles_is_not_believed(tmp_path: Path) -> None:
    """The caller decides how an answer is read, not the worker."""
    path = str(tmp_path / "was-here")

    @isolated(results="data", keep_alive=0)
    def hostile() -> None:
        import sys

        worker = next(
            frame.f_locals["self"]
            for frame in iter_frames(sys._getframe())
            if type(frame.f_locals.get("self")).__name__ == "Worker"
        )
        import pickle

        worker._data.send({"type": "result", "call": "x"}, [pickle.dumps(Bomb(path))])

    def iter_frames(frame: Any) -> Any:
        while frame is not None:
            yield frame
            frame = frame.f_back

    with pytest.raises(errors.ProtocolMismatch):
        hostile()
    assert not os.path.exists(path)


def test_generators_yield_plain_data() -> None:
    """Items and errors of a generator come as plain data, large arrays among them."""

    @isolated(requirements=PACKAGES, results="data")
    def items() -> Iterator[Any]:
        import numpy as np

        for number in range(3):
            yield np.full(300_000, number)
        raise KeyError("end")

    found: list[Any] = []
    with pytest.raises(KeyError, match="end"):
        found.extend(items())
    assert [int(item[-1]) for item in found] == [0, 1, 2]


def test_an_exception_as_plain_data_has_its_frames_and_its_cause() -> None:
    """A built-in exception is caught by its type; the function's own lines are in the traceback."""
    with pytest.raises(ZeroDivisionError) as caught:
        evaluate("1 / 0")
    names = []
    frames = caught.value.__traceback__
    while frames is not None:
        names.append(frames.tb_frame.f_code.co_name)
        frames = frames.tb_next
    assert "evaluate" in names
    with pytest.raises(errors.RemoteError, match=r"JSONDecodeError"):
        evaluate("__import__('json').loads('{')")


def test_submitted_and_mapped_calls_bring_plain_data() -> None:
    """Every way to call reads the answers alike."""
    expressions = [str(number) for number in range(40)]
    assert list(evaluate.map(expressions)) == list(range(40))
    assert evaluate.submit("{1: b'x'}").result() == {1: b"x"}
    with pytest.raises(errors.SerializationError, match="range"):
        list(evaluate.map(["1", "range(3)"]))


def test_results_has_two_values() -> None:
    """Anything else is refused when the function is defined."""
    with pytest.raises(ValueError, match="pickle, data"):
        isolated(results="json")(len)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="`results`"):
        isolated(results=True)(len)  # type: ignore[call-overload]
    assert evaluate.on(results="pickle")("{1: slice(2)}") == {1: slice(2)}
