"""A call as bytes, with its spec and the project's modules: for a queue that keeps calls whose caller is gone.

    length of the header u32 | header (JSON) | function | arguments | setup | texts | buffers ... | contents of modules ...

The header has the fields of the call and of the spec, the header of the `sources` message, and the sizes of the parts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

from atoll.model.specs import Call, LeaseSpec

VERSION = 1
_LENGTH = struct.Struct("!I")
_PARTS = ("function", "arguments", "setup", "texts")
_LEFT_OUT = ("buffers", "names", "terminal")
_FIELDS: dict[str, Any] = {one.name: one.type for one in fields(Call) if one.name not in {*_PARTS, *_LEFT_OUT}}


class BundleMessage(Protocol):
    """The modules that travel with a call, as a message."""

    @property
    def digest(self) -> str: ...

    def message(self) -> tuple[dict[str, Any], list[Any]]: ...


class StoredBundle(NamedTuple):
    """Modules as they were when the call was stored; see `host.contract.Bundle`."""

    header: dict[str, Any]
    contents: list[Any]

    @property
    def digest(self) -> str:
        return str(self.header.get("digest", ""))

    def message(self) -> tuple[dict[str, Any], list[Any]]:
        """Return the header and buffers of the `sources` message."""
        return self.header, self.contents

    @classmethod
    def from_bytes(cls, data: bytes) -> StoredBundle:
        """Return the modules whose bytes `bundle_pieces` has made.

        Raises:
            ValueError: the bytes are no modules.
        """
        try:
            view = memoryview(data)
            place = _LENGTH.size + _LENGTH.unpack_from(view)[0]
            header = json.loads(bytes(view[_LENGTH.size : place]))
            contents = []
            for size in header["sizes"]:
                contents.append(bytes(view[place : place + size]))
                place += size
            if place != len(view) or not isinstance(header["sources"], dict):
                raise ValueError("the stored modules have another size")
            return cls(header["sources"], contents)
        except (KeyError, TypeError, struct.error, RecursionError) as error:
            raise ValueError(f"the stored modules cannot be read: {error!r}") from error


def bundle_pieces(bundle: BundleMessage) -> list[Any]:
    """Return the bytes of modules, in pieces."""
    sources, contents = bundle.message()
    parts = [memoryview(_whole(part)).cast("B") for part in contents]
    header = {"sources": sources, "sizes": [part.nbytes for part in parts]}
    text = json.dumps(header, separators=(",", ":")).encode()
    return [_LENGTH.pack(len(text)), text, *parts]


class StoredCall(NamedTuple):
    """A call with all that a host needs to run it."""

    call: Call
    spec: LeaseSpec
    bundle: BundleMessage | None

    def to_bytes(self) -> bytes:
        """Return the call as bytes; its buffers are copied."""
        sources, contents = self.bundle.message() if self.bundle is not None else (None, [])
        call = self.call
        parts = [*(_whole(getattr(call, name)) for name in _PARTS), *map(_whole, call.buffers), *map(_whole, contents)]
        header = {
            "version": VERSION,
            "call": {name: getattr(call, name) for name in _FIELDS},
            "spec": self.spec.to_data(),
            "sources": sources,
            "buffers": len(call.buffers),
            "sizes": [len(part) for part in parts],
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        return b"".join((_LENGTH.pack(len(text)), text, *parts))

    @classmethod
    def from_bytes(cls, data: bytes) -> StoredCall:
        """Return the call that `to_bytes` stored.

        Raises:
            ValueError: the bytes are no stored call of this version.
        """
        try:
            return cls._parse(data)
        except (KeyError, TypeError, AttributeError, struct.error, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"the stored call cannot be read: {error!r}") from error

    @classmethod
    def _parse(cls, data: bytes) -> StoredCall:
        view = memoryview(data)
        place = _LENGTH.size + _LENGTH.unpack_from(view)[0]
        header = json.loads(bytes(view[_LENGTH.size : place]))
        if header["version"] != VERSION:
            raise ValueError(f"the call was stored in version {header['version']}, not {VERSION}")
        parts = []
        for size in header["sizes"]:
            if not isinstance(size, int) or size < 0:
                raise ValueError("the stored call has a part without a size")
            parts.append(bytes(view[place : place + size]))
            place += size
        if place != len(view):
            raise ValueError(f"the stored call has {len(view)} bytes, not {place}")
        named = header["call"]
        if set(named) != set(_FIELDS) or not all(_fits(named[name], kind) for name, kind in _FIELDS.items()):
            raise ValueError("the stored call has other fields")
        first = len(_PARTS)
        buffers, sources = header["buffers"], header["sources"]
        if type(buffers) is not int or not 0 <= buffers <= len(parts) - first:
            raise ValueError("the stored call has fewer parts than it names")
        if sources is not None and not isinstance(sources, dict):
            raise ValueError("the stored call's modules have no header")
        last = first + buffers
        binary: dict[str, Any] = dict(zip(_PARTS, parts[:first], strict=True))
        # arrays in arguments are writable, as they are for a call that was not stored
        call = Call(**named, **binary, buffers=tuple(bytearray(part) for part in parts[first:last]))
        bundle = StoredBundle(sources, parts[last:]) if sources is not None else None
        return cls(call, LeaseSpec.from_data(header["spec"]), bundle)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
}


def _fits(value: Any, kind: str) -> bool:
    return _KINDS[kind](value)


def _whole(data: Any) -> Any:
    """Return bytes, or a view of them; a pickle in several parts is put together."""
    parts = getattr(data, "parts", None)
    return memoryview(data).cast("B") if parts is None else b"".join(parts)
