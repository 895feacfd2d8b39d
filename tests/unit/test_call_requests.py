"""Requests about calls: the id that they name."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atoll import errors
from atoll.daemon.call_requests import find


def test_an_empty_id_is_an_error_of_its_own() -> None:
    """A variable of a shell that is not set is no malformed message of an older client."""
    nobody: Any = None
    with pytest.raises(errors.ResourcesUnavailable, match="an empty id names no call"):
        asyncio.run(find(nobody, nobody, ""))
    with pytest.raises(ValueError, match="must be an id"):
        asyncio.run(find(nobody, nobody, 7))
