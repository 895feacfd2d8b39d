"""`results="data"`: what plain data is, that it arrives as it was, and that hostile bytes harm nobody."""

from __future__ import annotations

import datetime as dt
import json
import os
import struct
import subprocess
import sys
import time
import zoneinfo
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import errors
from atoll.payload import exceptions_dump as agent_exceptions
from atoll.payload import untrusted as sdk_plain
from atoll.payload import values
from atoll.payload.plain import encode
from atoll.payload.plain.decode import loads
from atoll.payload.plain.format import MAX_DEPTH, NotPlainError, PlainDataError, leb
from atoll.wire.frames import Rope

HASH_MODULUS = sys.hash_info.modulus


def sent(value: Any) -> list[Any]:
    """Take a value through bytes, as the wire does."""
    return [
        bytearray(b"".join(one.parts) if type(one) is Rope else bytes(memoryview(one))) for one in encode.dumps(value)
    ]


def there(value: Any) -> Any:
    return loads(sent(value), 1 << 30)


ZONES = st.none() | st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.dates()
    | st.datetimes(timezones=ZONES)
    | st.times(timezones=ZONES)
    | st.timedeltas()
)
KEYS = st.deferred(lambda: ATOMS | st.tuples(ATOMS, ATOMS) | st.frozensets(ATOMS, max_size=3))
VALUES: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        ATOMS
        | st.lists(st.floats(allow_nan=False), min_size=8, max_size=20)
        | st.lists(st.integers(), min_size=8, max_size=20).map(tuple)
        | st.lists(VALUES, max_size=4)
        | st.lists(VALUES, max_size=4).map(tuple)
        | st.dictionaries(KEYS, VALUES, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
    )
)


def types_in(value: Any) -> Any:
    if isinstance(value, dict):
        return dict, [(types_in(key), types_in(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types_in(item) for item in value]
    return type(value)


@given(VALUES)
@settings(max_examples=80, deadline=None)
def test_plain_data_arrives_as_it_was(value: Any) -> None:
    """Values, types and order survive."""
    found = there(value)
    assert found == value
    assert types_in(found) == types_in(value)


@pytest.mark.parametrize(
    "value",
    [
        float("inf"),
        "\ud800",
        b"x" * 100_000,
        [1.0] * 9,
        [2**63] * 9,
        (2**62,) * 9,
        [True] * 9,
        {(-1, -1): 1, (-1, -2): 2, (-2, -1): 3, (-2, -2): 4},
        {frozenset({-1}), frozenset({-2})},
        dt.datetime(2020, 3, 29, 2, 30, fold=1),  # noqa: DTZ001 - it has none on purpose
        dt.datetime(2026, 11, 29, 5, 29, 41, 123456, tzinfo=dt.UTC),
        dt.time(1, tzinfo=dt.timezone(dt.timedelta(hours=2), "CEST")),
        dt.timedelta.max,
        dt.timedelta.min,
        dt.date.max,
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_values_at_the_edges_arrive(value: Any) -> None:
    """Extremes and special forms come back equal, with their types."""
    found = there(value)
    assert found == value
    assert types_in(found) == types_in(value)
    assert repr(found) == repr(value) or isinstance(value, set)


def test_a_value_that_is_referred_to_twice_comes_twice() -> None:
    """Shared references are no cycle."""
    shared = [1]
    found = there({"a": shared, "b": [shared, shared]})
    assert found == {"a": [1], "b": [[1], [1]]}
    assert found["a"] is not found["b"][0]


ARRAYS = {
    "one dimension": np.arange(10),
    "none": np.array(5.5),
    "empty": np.zeros((0, 3), "M8[ns]"),
    "fortran": np.ones((300, 400), order="F") * np.arange(400),
    "strided": np.arange(10_000).reshape(100, 100)[::2, ::-3],
    "read-only": np.broadcast_to(np.arange(5), (4, 5)),
    "texts": np.array(["a", "bc\U0001f600", ""]),
    "bytes": np.array([b"a", b"bc"]),
    "booleans": np.array([[True], [False]]),
    "days": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "durations": np.array([1, 2], "m8[25us]"),
    "big-endian": np.arange(5, dtype=">f4"),
    "big-endian texts": np.array(["x\U0001f600"]).astype(">U2"),
    "half": np.ones(3, "f2"),
    "complex": np.ones(3, "c16"),
    "large": np.arange(1_000_000),
    "many dimensions": np.ones((1,) * 20),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_arrive_as_they_were(name: str) -> None:
    """Type, shape, order and contents survive, and what arrives can be written to."""
    array = ARRAYS[name]
    found = there([array, "next"])[0]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array, equal_nan=array.dtype.kind in "fcMm")
    assert found.flags.writeable
    assert found.flags.f_contiguous == (array.flags.f_contiguous or array.ndim < 2)


def test_a_large_array_is_not_copied() -> None:
    """Its memory is sent as it is, and what arrives is used as it is."""
    array = np.arange(1_000_000)
    structure, buffer = encode.dumps({"a": array})
    assert np.shares_memory(np.frombuffer(buffer, array.dtype), array)
    arrived = bytearray(buffer)
    assert np.shares_memory(loads([structure, arrived])["a"], np.frombuffer(arrived, np.uint8))


@pytest.mark.parametrize(
    "value",
    [np.float64(3), np.bool_(True), np.str_("x"), np.datetime64("2020-01-01"), np.int8(-3), np.longdouble("0.1")],
)
def test_numpys_scalars_keep_their_type(value: Any) -> None:
    """A scalar of NumPy is one of the same type when it arrives."""
    found = there({"k": value})["k"]
    assert type(found) is type(value)
    assert found == value


def test_arrow_tables_arrive_as_they_were() -> None:
    """Columns of nested, dictionary and missing values, chunks and metadata survive."""
    table = pa.table(
        {
            "a": [1, None, 3],
            "b": ["x", "y", None],
            "c": pa.array(["q", "q", "r"]).dictionary_encode(),
            "d": [[1], [2, 3], None],
            "e": [{"k": 1.5}, None, {"k": None}],
            "f": pa.array([dt.datetime(2020, 1, 1, tzinfo=dt.UTC)] * 3, pa.timestamp("ns", "Europe/Paris")),
        }
    ).replace_schema_metadata({"who": "me"})
    for one in (table, pa.concat_tables([table, table]).slice(1, 4), table.slice(0, 0), pa.table({})):
        found = there({"t": one})["t"]
        assert found.equals(one, check_metadata=True)
        found.validate(full=True)


def test_two_chunks_with_other_dictionaries_arrive() -> None:
    """A dictionary that is replaced between batches is no growing one."""
    one, other = (pa.table({"c": pa.array(words).dictionary_encode()}) for words in (["a", "b"], ["b", "c"]))
    table = pa.concat_tables([one, other])
    assert there(table).equals(table)


# --- what is not plain ---------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    a: int
    b: int


class Level(IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


class Matrix(np.ndarray[Any, Any]): ...


def _itself() -> dict[str, Any]:
    inner: list[Any] = []
    inner.append({"again": inner})
    return {"k": inner}


def _deep(depth: int) -> list[Any]:
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    return deep


@dataclass(frozen=True)
class _Later:
    """A value that each process of a run would hold as a parameter: the test makes it."""

    make: Callable[[], Any]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), ["`it` is a `object`"]),
        ([1, {"a": (1, int)}], ["`it[1]['a'][1]` is a `type`"]),
        (Pair(1, 2), ["Pair"]),
        ({"x": Level.LOW}, ["it['x']", "Level"]),
        ([Text("x")], ["it[0]", "Text"]),
        (OrderedDict(), ["collections.OrderedDict"]),
        (bytearray(b"x"), ["`bytearray`"]),
        (np.array([object()]), ["NumPy array of type `object`"]),
        (np.zeros(2, "i4,f8"), ["NumPy array of type"]),
        (np.ones(3).view(Matrix), ["Matrix"]),
        (np.ma.masked_array([1, 2], [True, False]), ["MaskedArray"]),
        ({1, (2, Level.LOW)}, ["it's item[1]", "Level"]),
        ({(1, Level.LOW): 1}, ["it's key[1]", "Level"]),
        (dt.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")), ["time zone", "fixed offsets"]),
        (_itself(), ["`it['k'][0]['again']` is a container that holds itself"]),
        (_deep(MAX_DEPTH), [f"deeper than {MAX_DEPTH}"]),
        (_Later(lambda: _deep(200_000)), [f"deeper than {MAX_DEPTH}"]),
        (
            pa.table({"x": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16)))}),
            ["extension"],
        ),
        (RuntimeError("x"), ["`RuntimeError`"]),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_what_is_not_plain_is_named(value: Any, words: list[str]) -> None:
    """The error says where in the value it is, and its type."""
    value = value.make() if isinstance(value, _Later) else value
    with pytest.raises(NotPlainError) as caught:
        encode.dumps(value)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(errors.SerializationError, match="the result cannot be sent as plain data") as refused:
        values.dumps_answer(value, plain=True)
    assert refused.value.details["path"] == caught.value.path


def test_depth_up_to_the_limit_arrives() -> None:
    """Data may be as deep as the limit says."""
    assert there(_deep(MAX_DEPTH - 1)) == _deep(MAX_DEPTH - 1)


def test_containers_of_every_kind_may_be_as_deep_as_the_limit() -> None:
    """Python's usual stack holds each kind at the greatest depth, with places left for the program that calls."""
    script = (
        "from atoll.payload.plain import encode, format; from atoll.payload.plain.decode import loads\n"
        "for around in (lambda it: [it], lambda it: (it,), lambda it: {1: it}, lambda it: frozenset({it})):\n"
        "    deep = 1\n"
        "    for _ in range(format.MAX_DEPTH): deep = around(deep)\n"
        "    assert loads(encode.dumps(deep)) == deep\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_decoding_plain_values_imports_nothing() -> None:
    """A caller that has neither NumPy nor Arrow at hand does not import them for what needs none."""
    code = (
        "import sys; from atoll.payload.plain.decode import loads; "
        "assert loads([bytes.fromhex(sys.argv[1])]) == [1, 'x', {2.5: None}]; "
        "assert not {'numpy', 'pyarrow', 'pickle'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, encode.dumps([1, "x", {2.5: None}])[0].hex()], check=True, timeout=60)


# --- hostile data --------------------------------------------------------------------------------------------------


def structure(*pieces: bytes | int) -> bytes:
    return b"".join(leb(piece) if isinstance(piece, int) else piece for piece in pieces)


def array_head(dtype: bytes, order: bytes, *shape: int) -> bytes:
    return structure(b"a", len(dtype), dtype, order, len(shape), *shape)


HOSTILE: dict[str, list[bytes]] = {
    "nothing": [b""],
    "an unknown tag": [b"z"],
    "a pickle": [b"\x80\x05\x95\x00."],
    "a list that claims much": [structure(b"l", 1 << 62)],
    "a set that claims much": [structure(b"e", 1 << 40, b"N")],
    "a dict that claims much": [structure(b"m", 3, b"NNNNN")],
    "numbers that claim much": [structure(b"x", 1 << 60)],
    "text that claims much": [structure(b"s", 1 << 61, b"x")],
    "a number without an end": [b"l" + b"\xff" * 50],
    "text that is not UTF-8": [structure(b"s", 2, b"\xff\xfe")],
    "a set with an item twice": [structure(b"e", 2, b"NN")],
    "a set with 1 and 1.0": [structure(b"e", 2, b"i", 1, b"\1", b"d", struct.pack("<d", 1.0))],
    "a dict with a key twice": [structure(b"m", 2, b"NNNN")],
    "a key that has no hash": [structure(b"m", 1, b"l", 0, b"N")],
    "deeper than allowed": [b"l\1" * 300 + b"N"],
    "much deeper than allowed": [b"t\1" * 3_000_000 + b"N"],
    "a date that is none": [b"D" + struct.pack("<HBB", 2021, 2, 30)],
    "a time that is none": [b"C" + struct.pack("<BBBIBB", 25, 0, 0, 0, 0, 0)],
    "a zone without an offset": [b"C" + struct.pack("<BBBIBB", 1, 0, 0, 0, 0, 1) + b"N"],
    "a zone beyond a day": [
        b"C" + struct.pack("<BBBIBB", 1, 0, 0, 0, 0, 1) + b"I" + struct.pack("<iiI", 9, 0, 0) + b"N"
    ],
    "a duration beyond the largest": [b"I" + struct.pack("<iiI", 2**31 - 1, 0, 0)],
    "more after the end": [b"NN"],
    "a buffer too many": [b"N", b"x"],
    "a buffer too few": [b"B"],
    "an object array": [array_head(b"|O", b"C", 1) + b"B", b"x" * 8],
    "an array of pointers": [array_head(b"|O8", b"C", 1) + b"B", b"x" * 8],
    "an array type that is code": [array_head(b"f8,__import__('os')", b"C", 1) + b"B", b"x" * 8],
    "an array that is too small": [array_head(b"<f8", b"C", 2) + b"B", b"x" * 8],
    "an array that is too large": [array_head(b"<f8", b"C", 1 << 61) + b"B", b"x" * 8],
    "an array whose size wraps": [array_head(b"<f8", b"C", 1 << 32, 1 << 32) + b"B", b""],
    "an array with a zero and a large dimension": [array_head(b"<f8", b"C", 0, 1 << 62, 1 << 62) + b"B", b""],
    "an array of too many dimensions": [array_head(b"<f8", b"C", *[1] * 65) + b"B", b"x" * 8],
    "an array in no order": [array_head(b"<f8", b"K", 1) + b"B", b"x" * 8],
    "an array of texts without size": [array_head(b"<U0", b"C", 1 << 40) + b"B", b""],
    "an array of huge texts": [array_head(b"<U999999999", b"C", 0, 5) + b"b\1x"],
    "a boolean that is 2": [array_head(b"|b1", b"C", 3) + structure(b"b", 3, b"\0\2\1")],
    "a character beyond Unicode": [array_head(b"<U1", b"C", 1) + structure(b"b", 4, b"\xff\xff\xff\xff")],
    "a character beyond Unicode, big-endian": [array_head(b">U1", b"F", 1, 1) + structure(b"b", 4, b"\0\x11\0\0")],
    "a scalar with dimensions": [b"n" + array_head(b"<f8", b"C", 1)[1:] + b"B", b"x" * 8],
    "a table of nothing": [b"A", b""],
    "a table of noise": [b"A", bytes(range(256)) * 20],
    "a table that claims much": [b"A", b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"x" * 100],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_data_is_refused(name: str) -> None:
    """Whatever the bytes are, reading them ends with the one error, quickly."""
    began = time.process_time()
    with pytest.raises((PlainDataError, MemoryError)):
        loads([bytearray(one) for one in HOSTILE[name]], 1 << 28)
    assert time.process_time() - began < 20


@pytest.mark.parametrize("tag", [b"l", b"e", b"m"])
def test_containers_take_no_more_memory_than_they_may(tag: bytes) -> None:
    """Empty containers are two bytes on the wire and some hundred in memory: the bytes alone are no bound."""
    empty = structure(tag, 0)
    with pytest.raises(MemoryError):
        loads([structure(b"l", 1_000_000) + empty * 1_000_000], 40_000_000)
    assert len(loads([structure(b"l", 100_000) + empty * 100_000], 40_000_000)) == 100_000


def test_one_wide_character_makes_a_text_wide_and_is_counted() -> None:
    """Text takes up to four bytes a character."""
    text = ("x" * 10_000_000 + "\U0001f600").encode()
    with pytest.raises(MemoryError):
        loads([structure(b"s", len(text), text)], 20_000_000)


def _colliding(count: int, make: Any = lambda number: number) -> bytes:
    encoder = encode.Encoder()
    for number in range(1, count + 1):
        encoder.add(make(number * HASH_MODULUS))
    return structure(b"e", count) + b"".join(encoder.pieces)


@pytest.mark.parametrize(
    "make", [lambda number: number, lambda number: (1, (number,)), lambda number: frozenset({number, "x"})]
)
def test_keys_that_were_made_to_collide_are_refused(make: Any) -> None:
    """Numbers of one hash would take the square of their number to put into a set."""
    data = _colliding(60_000, make)
    began = time.process_time()
    with pytest.raises(PlainDataError, match="same hash"):
        loads([data], 1 << 30)
    assert time.process_time() - began < 20


def test_a_few_keys_of_one_hash_are_accepted() -> None:
    """Honest keys collide now and then."""
    assert len(loads([_colliding(30)])) == 30


def test_sets_in_sets_that_collide_at_every_level_are_refused() -> None:
    """The cost of comparing grows with each level, and is counted before it is paid."""

    def nested(level: int, seed: int) -> Any:
        if not level:
            return seed * HASH_MODULUS
        return frozenset(nested(level - 1, 60 * seed + number) for number in range(1, 41))

    encoder = encode.Encoder()
    encoder.add({nested(2, number) for number in range(1, 9)})
    # The same sets once more, without building them: all elements have the hash of 0.
    data = b"".join(encoder.pieces)
    began = time.process_time()
    with pytest.raises(PlainDataError, match="same hash"):
        loads([structure(b"l", 40) + data * 40], 1 << 30)
    assert time.process_time() - began < 20


def _stream(table: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_tables_are_refused(codec: str) -> None:
    """A compressed buffer can claim any size."""
    table = pa.table({"a": np.zeros(100_000), "b": pa.array(["x"] * 100_000).dictionary_encode()})
    data = _stream(table, compression=codec)
    assert pa.ipc.open_stream(data).read_all().equals(table), "Arrow itself would have taken it"
    with pytest.raises(PlainDataError, match="compressed"):
        loads([b"A", bytearray(data)], 1 << 30)


def test_growing_dictionaries_are_refused() -> None:
    """Each batch would get a copy of all that the dictionary has become."""
    sink = pa.BufferOutputStream()
    type_ = pa.dictionary(pa.int32(), pa.string())
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, pa.schema({"c": type_}), options=options) as writer:
        for words in (["a"], ["a", "b"], ["a", "b", "c"]):
            array = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), words)
            writer.write_batch(pa.record_batch({"c": array}))
    data = sink.getvalue().to_pybytes()
    assert pa.ipc.open_stream(data).read_all().num_rows == 3
    with pytest.raises(PlainDataError, match="part of one"):
        loads([b"A", bytearray(data)], 1 << 30)


def test_extension_types_are_refused_before_their_code_runs() -> None:
    """A type that the caller has registered is not asked to read what the worker says about it."""
    ran = []

    class Loud(pa.ExtensionType):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(pa.int64(), "atoll.test.loud")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: Any) -> Any:
            ran.append(serialized)
            return cls()

    pa.register_extension_type(Loud())
    try:
        data = _stream(pa.table({"x": pa.ExtensionArray.from_storage(Loud(), pa.array([1]))}))
        with pytest.raises(PlainDataError, match="extension"):
            loads([b"A", bytearray(data)], 1 << 30)
        assert not ran
    finally:
        pa.unregister_extension_type("atoll.test.loud")


def test_a_table_whose_contents_are_wrong_is_refused() -> None:
    """Offsets that lead out of the data are found before anybody uses them."""
    data = bytearray(_stream(pa.table({"s": ["hello", "world"]})))
    place = data.find(struct.pack("<iii", 0, 5, 10))
    data[place : place + 12] = struct.pack("<iii", 0, 5, 1 << 30)
    with pytest.raises(PlainDataError):
        loads([b"A", data], 1 << 30)


# --- exceptions ----------------------------------------------------------------------------------------------------


def raised(exc: BaseException) -> BaseException:
    """Take an exception through the wire as plain data."""
    try:
        raise exc
    except BaseException as caught:
        header, buffers = agent_exceptions.dumps(caught, plain=True)
    assert all(node["pickle"] < 0 for node in header["exceptions"])
    return sdk_plain.loads_exception(json.loads(json.dumps(header)), [bytearray(one) for one in buffers])


class Own(ValueError): ...


@pytest.mark.parametrize(
    ("exc", "kind", "text"),
    [
        (ValueError("x", 3), ValueError, "('x', 3)"),
        (KeyError("k"), KeyError, "'k'"),
        (FileNotFoundError(2, "gone", "/data/x"), FileNotFoundError, "[Errno 2] gone: '/data/x'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), UnicodeDecodeError, None),
        (errors.SerializationError("no", hint="h", n=1), errors.SerializationError, "no\nhint: h"),
        (errors.WorkerDied("gone", exit_status=3), errors.WorkerDied, "gone"),
        (Own("mine"), errors.RemoteError, f"{Own.__module__}.Own: mine"),
        (ValueError(object), errors.RemoteError, "ValueError: <class 'object'>"),
        (KeyboardInterrupt(), errors.RemoteError, "KeyboardInterrupt"),
        (GeneratorExit(), errors.RemoteError, "GeneratorExit"),
        (StopIteration(3), errors.RemoteError, "StopIteration: 3"),
        (SyntaxError("s", ("/dev/zero", 1, 1, None)), errors.RemoteError, None),
    ],
)
def test_exceptions_come_as_built_in_types_or_by_name(exc: BaseException, kind: Any, text: str | None) -> None:
    """A built-in exception has its type and arguments; every other one is a `RemoteError` with its name."""
    found = raised(exc)
    assert type(found) is kind or kind is errors.RemoteError
    assert isinstance(found, kind)
    assert text is None or str(found) == text
    if kind is errors.RemoteError:
        assert "test_plain_data.py" in found.traceback_text  # type: ignore[attr-defined]
        assert isinstance(found, ValueError) is isinstance(exc, ValueError), "the built-in type above it catches it"


def test_chains_groups_and_notes_of_exceptions_arrive() -> None:
    """What caused an exception, what is in a group and what was noted is there."""
    inner = KeyError("inner")
    group = ExceptionGroup("several", [inner, Own("x")])
    group.add_note("a note")
    outer = RuntimeError("outer")
    outer.__cause__ = group
    found = raised(outer)
    assert type(found) is RuntimeError
    cause = found.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert type(cause.exceptions[0]) is KeyError
    assert isinstance(cause.exceptions[1], errors.RemoteError)
    assert cause.__notes__ == ["a note"]


def node(**changes: Any) -> dict[str, Any]:
    plain_node: dict[str, Any] = {
        "type": "ValueError",
        "text": "x",
        "frames": [],
        "cause": -1,
        "context": -1,
        "suppress": False,
        "notes": [],
        "members": None,
        "pickle": -1,
        "buffers": 0,
        "plain": -1,
        "refused": "",
    }
    return {**plain_node, **changes}


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        [node()] * 51,
        [node(type=3)],
        [node(text=None)],
        [node(frames=[["f", 1, "n"]])],
        [node(frames=[["f", 1 << 40, "n", "", None, None, None]])],
        [node(frames=[["f", -1, "n", "", None, None, None]])],
        [node(frames=[["f", 1, "n", "", 1.5, None, None]])],
        [node(frames=[["f", 1, "n", "", None, None, None]] * 2001)],
        [node(cause=1)],
        [node(cause=True)],
        [node(members=[1])],
        [node(notes=[1])],
        [node(plain=0, buffers=1), node(plain=0, buffers=1)],
        [{}],
        ["x"],
        "x",
    ],
)
def test_a_wrong_description_of_an_exception_is_refused(nodes: Any) -> None:
    """Each field is checked before it is used."""
    with pytest.raises((ValueError, KeyError)):
        sdk_plain.loads_exception({"exceptions": nodes}, [b"l\0"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SystemExit", [0]),
        ("KeyboardInterrupt", []),
        ("StopIteration", []),
        ("eval", ["1"]),
        ("__import__", ["os"]),
        ("open", ["/etc/passwd"]),
        ("type", ["x"]),
        ("os.system", ["true"]),
        ("atoll.errors.RemoteError", {"code": "internal"}),
        ("atoll.errors.WorkerDied", [1]),
        ("ExceptionGroup", ["empty"]),
        ("UnicodeDecodeError", [1]),
    ],
)
def test_a_hostile_exception_is_only_stood_in_for(name: str, value: Any) -> None:
    """A name that is not on the list, or arguments that do not fit, give a `RemoteError` and call nothing else."""
    buffers = encode.dumps(value)
    found = sdk_plain.loads_exception({"exceptions": [node(type=name, plain=0, buffers=len(buffers))]}, buffers)
    assert type(found) is errors.RemoteError


def test_details_that_are_no_details_are_left_out() -> None:
    """A name that an error's constructor has for itself cannot break the caller, who gets the error without it."""
    buffers = encode.dumps({"code": "worker_died", "details": {"self": 1, "exit_status": 3}})
    described = node(type="atoll.errors.WorkerDied", plain=0, buffers=len(buffers))
    found = sdk_plain.loads_exception({"exceptions": [described]}, buffers)
    assert type(found) is errors.WorkerDied
    assert found.details == {"exit_status": 3}


def test_a_traceback_reads_no_file_that_the_worker_chose(tmp_path: Any) -> None:
    """A frame in a pipe or a device does not make the printing of a traceback wait or fill the memory."""
    import traceback

    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    frames = [[name, 5, "f", "", None, None, None] for name in (pipe, "/dev/zero", "/etc/hostname", __file__)]
    found = sdk_plain.loads_exception({"exceptions": [node(frames=frames)]}, [])
    lines = "".join(traceback.format_exception(found))
    for name in (pipe, "/dev/zero", "/etc/hostname"):
        assert f'File "<{name}>"' in lines
    assert f'File "{__file__}"' in lines


def test_lines_of_remote_files_do_not_pile_up() -> None:
    """However many sources a worker sends, what is kept of them is bounded."""
    import linecache

    from atoll.payload import remote_frames

    for number in range(60):
        frames = [[f"/far/{number}/{n}.py", 190_000, "f", "x = 1", None, None, None] for n in range(3)]
        sdk_plain.loads_exception({"exceptions": [node(frames=frames)]}, [])
    kept = sum(len(entry[2]) for entry in linecache.cache.values() if len(entry) == 4)
    assert kept < 2 * remote_frames._MOST_GIVEN


def test_a_long_path_is_shown_without_its_middle() -> None:
    """What is too deep is said in a line that can be read."""
    value: list[object] = []
    for _ in range(300):
        value = [value]
    with pytest.raises(NotPlainError, match="is deeper than") as refused:
        encode.dumps(value)
    assert len(str(refused.value)) < 200
