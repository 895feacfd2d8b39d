"""Files in memory that nobody can change any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from atoll.environments.asked.certificates import KEPT, Certificates, digest_of
from atoll.errors import EnvironmentBuildError
from atoll.wire import sealed_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has them")


@pytest.fixture
def sealed() -> Iterator[int]:
    descriptor = sealed_file.make(b"text")
    yield descriptor
    os.close(descriptor)


def test_its_bytes_arrive_and_stay(sealed: int) -> None:
    """The reader gets the bytes, wherever the file's position is, and nobody can write it, also not its maker."""
    assert sealed_file.read(sealed, 4) == b"text"
    with pytest.raises(PermissionError):
        os.pwrite(sealed, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(sealed, 1)
    with pytest.raises(ValueError, match="more than 3"):
        sealed_file.read(sealed, 3)


@pytest.mark.parametrize("kind", ["pipe", "file", "unsealed"])
def test_only_a_sealed_file_is_read(kind: str) -> None:
    """A descriptor that could block its reader, or change under it, is refused without a read."""
    opened = list(os.pipe()) if kind == "pipe" else []
    if kind == "file":
        opened.append(os.open(__file__, os.O_RDONLY))
    if kind == "unsealed":
        opened.append(os.memfd_create("test", os.MFD_ALLOW_SEALING))
    try:
        with pytest.raises(ValueError, match="no sealed file"):
            sealed_file.read(opened[0], 1 << 20)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_certificates_are_found_by_their_digest() -> None:
    """The last ones are kept, and a name that is no digest is refused."""
    known = Certificates()
    for number in range(KEPT + 1):
        known.learn(f"{number}")
    assert digest_of("0") not in known
    assert known.text(digest_of("0")) == ""
    assert known.text(digest_of(f"{KEPT}")) == f"{KEPT}"
    with pytest.raises(EnvironmentBuildError, match="no digest"):
        known.text("../secret")
