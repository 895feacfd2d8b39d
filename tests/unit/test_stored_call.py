"""Calls as bytes and back."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.model.specs import Call, EnvironmentSpec, LeaseSpec
from atoll.model.stored_call import StoredBundle, StoredCall

SPEC = LeaseSpec(EnvironmentSpec(requirements=("numpy",), interpreter="/usr/bin/python3"), "f", (("A", "1"),), "aa")


def stored(**fields: Any) -> StoredCall:
    call = Call("id", b"function", b"arguments", (memoryview(b"one"), bytearray(b"")), name="f", at=1.5, **fields)
    bundle = StoredBundle({"type": "sources", "digest": "aa", "files": [["m.py", 3, 420]], "origins": {}}, [b"x=1"])
    return StoredCall(call, SPEC, bundle)


def test_a_call_comes_back_as_it_was() -> None:
    """All fields, the spec, the modules and the out-of-band buffers."""
    before = stored(setup=b"setup", setup_digest="5e", timeout_seconds=2, stream=True, results="data", sources="aa")
    after = StoredCall.from_bytes(before.to_bytes())
    assert after.spec == SPEC
    assert after.call == before.call
    assert isinstance(after.bundle, StoredBundle)
    assert isinstance(before.bundle, StoredBundle)
    assert after.bundle.message() == before.bundle.message()
    assert after.bundle.digest == "aa"


def test_a_call_without_modules_comes_back() -> None:
    """None stays None."""
    found = StoredCall.from_bytes(StoredCall(Call("id", b"f", b"a"), SPEC, None).to_bytes())
    assert found == StoredCall(Call("id", b"f", b"a"), SPEC, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"",
        lambda _: b"\0\0\0\2{}",
        lambda _: (200_000).to_bytes(4, "big") + b"[" * 100_000 + b"]" * 100_000,
        lambda data: data.replace(b'"buffers":2', b'"buffers":9').replace(b'"buffers":1', b'"buffers":9'),
    ],
)
def test_other_bytes_are_refused(change: Any) -> None:
    """A queue's database may have been damaged."""
    with pytest.raises(ValueError, match="stored call"):
        StoredCall.from_bytes(change(stored().to_bytes()))
