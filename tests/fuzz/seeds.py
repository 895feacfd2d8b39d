"""What fuzzing starts from: honest messages."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from atoll.model.specs import EnvironmentSpec, LeaseSpec
from atoll.payload import exceptions_dump
from atoll.payload.plain import encode as plain
from atoll.wire.frames import BESIDE, CHUNK, NEW_RING, Rope, encode
from tests.fuzz import peers

SPLIT = b"\xf5\xf6"
VALUES: tuple[Any, ...] = (
    [None, True, 1, 2**80, 1.5, 1j, "x\u20ac", b"y", (1,), {2}, frozenset({3}), {"k": [{}]}],
    [1] * 20,
    (0.5,) * 20,
    [dt.datetime.now(dt.UTC), dt.date.max, dt.time(1), dt.timedelta(1)],
    {
        "a": np.arange(5),
        "b": np.ones((2, 3), order="F"),
        "c": np.float32(1),
        "d": np.array(["x"]),
        "e": np.array([True]),
    },
    np.arange(1000),
    pa.table({"a": [1, None], "b": ["x", "y"], "c": pa.array(["q", "q"]).dictionary_encode(), "d": [[1], []]}),
)


def joined(buffers: list[Any]) -> bytes:
    """Return buffers as the targets split them."""
    return SPLIT.join(b"".join(one.parts) if type(one) is Rope else bytes(memoryview(one)) for one in buffers)


def seeds(name: str) -> list[bytes]:
    """Return inputs that a target reads to their end."""
    if name in peers.TARGETS:
        return peers.seeds(name)
    if name in ("plain", "result"):
        return [joined(plain.dumps(value)) for value in VALUES]
    if name == "frames":
        chunked = encode({"type": "result"}, [b"x" * 9, b""], BESIDE | NEW_RING)[0] + CHUNK.pack(5) + CHUNK.pack(4)
        honest = b"".join(encode({"type": "call", "n": 1}, [b"a" * 300, b"", b"b"])) + b"".join(encode({}))
        return [honest, b"\1" + honest, chunked]
    if name == "lease":
        return [json.dumps(LeaseSpec(EnvironmentSpec(requirements=("numpy",)), "f", (("A", "b"),)).to_data()).encode()]
    found = []
    for error in (ValueError("x", 1), ExceptionGroup("g", [KeyError("k")]), FileNotFoundError(2, "gone", "f")):
        try:
            raise error
        except Exception as caught:
            header, buffers = exceptions_dump.dumps(caught, plain=True)
            found.append(SPLIT.join([json.dumps(header).encode(), joined(buffers)]))
    return found


def write_seeds(name: str, directory: Path) -> None:
    """Write a target's seeds as files."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (directory / f"seed-{number}").write_bytes(data)
