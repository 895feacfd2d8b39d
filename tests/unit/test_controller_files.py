"""Files beside functions of the published clients, as their messages name them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from atoll import errors

calls = pytest.importorskip("atoll.controller.calls")
HASH = "0" * 64


def files(*pairs: tuple[str, str]) -> list[Any]:
    """Return files as a message has them."""
    return [SimpleNamespace(relative_path=path, hash=digest) for path, digest in pairs]


def test_files_are_named_in_order() -> None:
    """The same files in another order are the same: their calls share what they may."""
    found = calls.listed(files(("b/c", HASH), ("a", "1" * 64), ("a", "1" * 64)))
    assert found == (("a", "1" * 64), ("b/c", HASH))


@pytest.mark.parametrize(
    ("path", "digest"),
    [("", HASH), ("/etc/x", HASH), ("../x", HASH), ("a/../x", HASH), ("a//b", HASH), ("./a", HASH), ("a/", HASH),
     ("a\0b", HASH), ("a", ""), ("a", "../" + "0" * 61), ("a", "A" * 64)],
)  # fmt: skip
def test_no_file_is_elsewhere(path: str, digest: str) -> None:
    """A path that is not below `/app`, and a hash that is none, are refused."""
    with pytest.raises(errors.CallerError, match="no file below"):
        calls.listed(files((path, digest)))


def test_bounds_of_files() -> None:
    """Two contents at one path, and too many files, are refused."""
    with pytest.raises(errors.CallerError, match="twice"):
        calls.listed(files(("a", HASH), ("a", "1" * 64)))
    with pytest.raises(errors.CallerError, match="at most"):
        calls.listed(files(*((str(number), HASH) for number in range(calls.MOST_FILES + 1))))
