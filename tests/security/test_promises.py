"""The table of promises in SECURITY.md: each test that it names exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "SECURITY.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([a-z0-9_]+/[a-z0-9_/]+\.py)(?:::(\w+))?`", TEXT)))


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """Return the names of the functions of a module."""
    return frozenset(node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=map("::".join, NAMED))
def test_a_promise_names_tests_that_exist(path: str, name: str) -> None:
    """A row's `path::name` is a test below `tests/`; a path alone is a module with tests."""
    module = TESTS / path
    assert module.is_file(), f"SECURITY.md names `{path}`"
    assert name in functions_of(module) if name else any(one.startswith("test_") for one in functions_of(module))
