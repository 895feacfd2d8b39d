"""Detached calls as bytes: one function, and the arguments of all calls of it, for a host that keeps them in a file.

    magic | header bytes u32 | CRC of the header u32 | header (JSON) | template | certificates | names | parts of each call ...
    | modules

The template is a `StoredCall` without arguments. The names are values of the program's modules that code may ask for
while it runs. The parts of a call are its arguments, the texts of code in them where they have some, and its buffers. A
CRC of each part finds damage before anything is sent to a worker. The project's modules come last: the host keeps them
in a file of their own, by their digest, once for all spools that have the same.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

from atoll.blake2 import blake2b
from atoll.model.specs import Call
from atoll.model.stored_call import StoredCall, bundle_pieces

MAGIC = b"ATSPOOL1"
MAX_HEADER_BYTES = 64 << 20
MOST_CALLS = 100_000
"""Calls of one spool."""
MOST_ID = 64
CRC = struct.Struct("!I")
"""The end of the file of an answer: the CRC of the frames before it."""
_PREFIX = struct.Struct("!8sII")
_MOST_TEXT = 400
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class RetryRule:
    """The option `retries` of a function, with the names of exceptions in place of the types.

    Args:
        count, wait_seconds, factor, most_seconds: see `sdk.retries.Retries`.
        on: module and qualified name of each type.
    """

    count: int = 0
    on: tuple[tuple[str, str], ...] = ()
    wait_seconds: float = 0.5
    factor: float = 2.0
    most_seconds: float = 60.0

    def to_data(self) -> dict[str, Any]:
        return {**vars(self), "on": [list(name) for name in self.on]}

    @classmethod
    def from_data(cls, data: Any) -> RetryRule:
        """Return the rule that `to_data` described.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(data, dict) or set(data) != set(cls.__dataclass_fields__):
            raise ValueError("`retries` has other fields")
        on = data["on"]
        names = isinstance(on, list) and all(
            isinstance(name, list) and len(name) == 2 and all(isinstance(part, str) for part in name) for name in on
        )
        numbers = all(
            isinstance(data[name], (int, float)) and not isinstance(data[name], bool) and 0 <= data[name] < 1e9
            for name in ("count", "wait_seconds", "factor", "most_seconds")
        )
        if not names or not numbers or not isinstance(data["count"], int):
            raise ValueError("`retries` has fields of other types")
        return cls(**{**data, "on": tuple((name[0], name[1]) for name in on)})

    def names(self, kinds: Iterable[tuple[str, str]]) -> bool:
        """Return whether an exception with these types, its own and those above it, is named."""
        found = set(kinds)
        if found & set(self.on) or ("builtins", "BaseException") in self.on:
            return True
        outside = {("builtins", name) for name in ("KeyboardInterrupt", "SystemExit", "GeneratorExit")}
        return ("builtins", "Exception") in self.on and not found & outside

    def wait(self, retry: int) -> float:
        """Return the seconds before the retry of this number, counted from 0."""
        seconds = self.wait_seconds
        for _ in range(min(retry, 200)):
            if seconds >= self.most_seconds:
                break
            seconds *= self.factor
        return min(seconds, self.most_seconds)


class SpooledCall(NamedTuple):
    """One call of a spool: its id and time, and the place of its parts in the file."""

    call: str
    at: float
    texts_digest: str
    crc: int
    offset: int
    sizes: tuple[int, ...]


class StoredNames(NamedTuple):
    """Names of the program's modules, as they were when the call was made.

    Args:
        values: by module and name, the pickle of a value.
        left_out: by module and name, the reason that a value has none.
    """

    values: dict[str, dict[str, bytes]]
    left_out: dict[str, dict[str, str]]

    def answer(self, question: dict[str, Any]) -> tuple[dict[str, Any], Sequence[Any]]:
        """Return the rest of the `named` message; see `payload.answers.Names.answer`."""
        module, name = str(question.get("module")), question.get("name")
        values, left_out = self.values.get(module, {}), self.left_out.get(module, {})
        if module not in self.values:
            return {"missing": f"the function does not travel with the module `{module}`"}, ()
        if question.get("snapshot"):
            known = question.get("known")
            sent = {one: data for one, data in values.items() if not isinstance(known, list) or one not in known}
            return {"names": list(sent), "left_out": left_out, "callables": []}, list(sent.values())
        if not isinstance(name, str):
            return {"names": sorted({*values, *left_out})}, ()
        return ({}, [values[name]]) if name in values else ({"missing": left_out.get(name, "")}, ())


class Spool:
    """The header of a spool, and access to its calls.

    Args:
        header: see `from_file`.
        start: where the template begins in the file.
    """

    def __init__(self, header: dict[str, Any], start: int) -> None:
        self._start = start
        self.batch: str = header["batch"]
        self.function: str = header["function"]
        self.results: str = header["results"]
        self.stream: bool = header["stream"] is True
        self.retries = RetryRule.from_data(header["retries"])
        self.on_done: str = header.get("on_done", "")
        self.deployed: str = header.get("deployed", "")
        self._template: list[int] = header["template"]
        self._certificates: list[int] = header["certificates"]
        self._names: list[Any] = header["names"]
        self._calls: list[list[Any]] = header["calls"]
        self.modules_bytes: int = header.get("modules", [0, ""])[0]
        self.modules_digest: str = header.get("modules", [0, ""])[1]
        if not (
            self._template and all(type(one) is int and one >= 0 for one in (*self._template, *self._certificates))
        ):
            raise ValueError("the spool has parts without a size")
        if type(self.modules_bytes) is not int or self.modules_bytes < 0:
            raise ValueError("the spool has modules without a size")
        if self.modules_digest != "" and not is_id(self.modules_digest):
            raise ValueError("the spool has modules without a digest")
        for text, most in (
            (self.batch, MOST_ID),
            (self.function, _MOST_TEXT),
            (self.results, 10),
            (self.on_done, 10),
            (self.deployed, _MOST_TEXT),
        ):
            if not isinstance(text, str) or len(text) > most or "\0" in text:
                raise ValueError("the spool has a text that is none, or too long")
        if not isinstance(self._calls, list) or len(self._calls) > MOST_CALLS:
            raise ValueError(f"a spool has at most {MOST_CALLS} calls")

    @cached_property
    def calls(self) -> list[SpooledCall]:
        """The calls, in their order.

        Raises:
            ValueError: one is described wrongly.
        """
        found = []
        offset = self._names_start + self._names[0]
        for call, at, digest, crc, *sizes in self._calls:
            if not is_id(call) or not isinstance(at, (int, float)) or not isinstance(digest, str) or len(sizes) < 2:
                raise ValueError("the spool describes a call wrongly")
            if type(crc) is not int or not all(type(size) is int and size >= 0 for size in sizes):
                raise ValueError("the spool has a call without sizes")
            found.append(SpooledCall(call, float(at), digest, crc, offset, tuple(sizes)))
            offset += sum(sizes)
        if len({one.call for one in found}) < len(found):
            raise ValueError("the spool has two calls of one id")
        return found

    @property
    def _names_start(self) -> int:
        return self._start + self._template[0] + self._certificates[0]

    @property
    def size_bytes(self) -> int:
        """The size that the file must have, without the modules."""
        if not self.calls:
            return int(self._names_start + self._names[0])
        last = self.calls[-1]
        return last.offset + sum(last.sizes)

    @classmethod
    def from_file(cls, file: BinaryIO) -> Spool:
        """Read the header of a spool.

        Raises:
            ValueError: it is damaged, or none.
        """
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size:
            raise ValueError("the spool has no header")
        magic, size, crc = _PREFIX.unpack(prefix)
        if magic != MAGIC or size > MAX_HEADER_BYTES:
            raise ValueError("the bytes are no spool of this version")
        text = file.read(size)
        if len(text) != size or zlib.crc32(text) != crc:
            raise ValueError("the header of the spool is damaged")
        try:
            return cls(json.loads(text), _PREFIX.size + size)
        except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f"the header of the spool cannot be read: {error!r}") from error

    def template(self, file: BinaryIO) -> StoredCall:
        """Return the function with all that belongs to each of its calls.

        Raises:
            ValueError: it is damaged.
        """
        return StoredCall.from_bytes(_part(file, self._start, *self._template))

    def certificates(self, file: BinaryIO) -> str:
        """Return the certificates that its index settings name; empty for none."""
        return _part(file, self._start + self._template[0], *self._certificates).decode()

    def names(self, file: BinaryIO) -> StoredNames:
        """Return the names that code may ask for.

        Raises:
            ValueError: they are damaged.
        """
        size, crc, modules = self._names
        data, place = _part(file, self._names_start, size, crc), 0
        values: dict[str, dict[str, bytes]] = {}
        for module, sizes in modules["values"].items():
            found = values[module] = {}
            for name, length in sizes:
                found[name] = data[place : place + length]
                place += length
        return StoredNames(values, modules["left_out"])

    def call(self, file: BinaryIO, number: int, template: StoredCall) -> Call:
        """Return one of the calls.

        Raises:
            ValueError: it is damaged.
        """
        if type(number) is not int or not 0 <= number < len(self.calls):
            raise ValueError(f"the spool has no call {number!r}")
        one = self.calls[number]
        data = memoryview(_part(file, one.offset, sum(one.sizes), one.crc))
        parts, place = [], 0
        for size in one.sizes:
            parts.append(data[place : place + size])
            place += size
        arguments, texts, *buffers = parts
        call = template.call.again(one.call, bytes(arguments), tuple(buffers), one.at)
        return replace(call, texts=bytes(texts), texts_digest=one.texts_digest) if one.texts_digest else call


def is_id(value: Any) -> bool:
    """Return whether a value can be the id of a call or a batch: it names files, too."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MOST_ID
        and value.isascii()
        and value.replace("-", "").replace("_", "").isalnum()
    )


def pieces(
    template: StoredCall,
    calls: Sequence[Call],
    *,
    batch: str = "",
    retries: RetryRule | None = None,
    certificates: str = "",
    names: StoredNames | None = None,
    on_done: str = "",
    deployed: str = "",
) -> Iterator[Any]:
    """Yield the bytes of a spool, in pieces.

    Args:
        template: the function; arguments and buffers of its call are left out.
        calls: its calls, which may have texts of their own.
        batch: the id of the batch; empty for calls that are none.
        names: values that code may ask for.
        on_done: the option of that name.
        deployed: app and name of a deployed function, as in `app/name`; empty for others.
    """
    bare = replace(template.call, id="", arguments=b"", buffers=())
    function = template._replace(call=bare, bundle=None).to_bytes()
    sources = bundle_pieces(template.bundle) if template.bundle is not None else []
    trust = certificates.encode()
    closed = names or StoredNames({}, {})
    pickles = [data for found in closed.values.values() for data in found.values()]
    names_crc = 0
    for data in pickles:
        names_crc = zlib.crc32(data, names_crc)
    modules = {
        "values": {
            module: [[name, len(data)] for name, data in found.items()] for module, found in closed.values.items()
        },
        "left_out": closed.left_out,
    }
    parts, described = [], []
    for call in calls:
        texts = call.texts if call.texts_digest != bare.texts_digest else b""
        own = [memoryview(part).cast("B") for part in (_whole(call.arguments), texts, *call.buffers)]
        crc = 0
        for part in own:
            crc = zlib.crc32(part, crc)
        digest = call.texts_digest if len(texts) else ""
        described.append([call.id, call.at, digest, crc, *(part.nbytes for part in own)])
        parts += own
    header = {
        "batch": batch,
        "function": bare.name[:_MOST_TEXT],
        "results": bare.results,
        "stream": bare.stream,
        "retries": (retries or RetryRule()).to_data(),
        "on_done": on_done,
        **({"deployed": deployed} if deployed else {}),
        "template": [len(function), zlib.crc32(function)],
        "certificates": [len(trust), zlib.crc32(trust)],
        "names": [sum(map(len, pickles)), names_crc, modules],
        "calls": described,
        "modules": [sum(map(len, sources)), modules_digest(sources) if sources else ""],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    yield _PREFIX.pack(MAGIC, len(text), zlib.crc32(text))
    yield from (text, function, trust, *pickles, *parts, *sources)


def made_anew(file: BinaryIO, call: str, batch: str = "") -> Iterator[bytes]:
    """Yield the bytes of a spool of one call, as another call with this id, in a batch.

    Raises:
        ValueError: it is damaged, or has another number of calls.
    """
    start = file.read(_PREFIX.size)
    magic, size, crc = _PREFIX.unpack(start) if len(start) == _PREFIX.size else (b"", 0, 0)
    text = file.read(size)
    if magic != MAGIC or zlib.crc32(text) != crc:
        raise ValueError("the spool is damaged")
    header = json.loads(text)
    ((_, _, *rest),) = header["calls"]
    header |= {"calls": [[call, time.time(), *rest]], "batch": batch}
    text = json.dumps(header, separators=(",", ":")).encode()
    yield _PREFIX.pack(MAGIC, len(text), zlib.crc32(text))
    yield text
    while piece := file.read(_PIECE_BYTES):
        yield piece


def modules_digest(pieces: Iterable[Any]) -> str:
    """Return the digest of modules, the name of their file."""
    digest = blake2b(digest_size=20)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _whole(data: Any) -> Any:
    parts = getattr(data, "parts", None)
    return data if parts is None else b"".join(parts)


def _part(file: BinaryIO, offset: int, size: int, crc: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size or zlib.crc32(data) != crc:
        raise ValueError("the spool is damaged")
    return data
