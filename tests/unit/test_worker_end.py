"""The end of a worker's process: what is taken apart, and what may just end."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from atoll.agent.process import end

if TYPE_CHECKING:
    import pytest


def give(monkeypatch: pytest.MonkeyPatch, name: str, path: str) -> None:
    module = ModuleType(name)
    module.__file__ = f"/opt/atoll/env/lib/python3.11/site-packages/{path}"
    monkeypatch.setitem(sys.modules, name, module)


def test_compiled_packages_are_known_before_and_after_the_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with compiled modules is taken apart in order, imported ahead or by a call, and also in another's place."""
    monkeypatch.setattr(end, "_before", (next(reversed(sys.modules)), False))
    assert not end._has_compiled_packages()
    give(monkeypatch, "holds.files", "holds/files.cpython-311-x86_64-linux-gnu.so")
    assert end._has_compiled_packages()
    end.prepare()
    assert end._before == ("holds.files", True)
    assert end._has_compiled_packages()


def test_packages_that_hold_memory_alone_just_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy, pandas and their like have nothing to write at the end."""
    monkeypatch.setattr(end, "_before", (next(reversed(sys.modules)), False))
    give(monkeypatch, "numpy.core.more", "numpy/core/more.cpython-311-x86_64-linux-gnu.so")
    give(monkeypatch, "_cffi_backend2", "numpy.libs/libx.py")
    assert not end._has_compiled_packages()
    give(monkeypatch, "_lonely", "_lonely.abi3.so")
    assert end._has_compiled_packages()
