"""The key: what makes two environments the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.environments.asked.key import key
from atoll.environments.asked.requirements import parse
from atoll.environments.built.interpreter import Interpreter

PYTHON = Interpreter(
    "/opt/py/bin/python3.11",
    "3.11.7",
    "cpython",
    "cpython-311-x86_64-linux-gnu",
    "linux-x86_64-glibc2.36",
    "/opt/py",
    (),
)
INDEX: dict[str, Any] = {"default": [], "extra": [], "links": [], "settings": [], "file": ""}


def made(entries: list[str], python: Interpreter = PYTHON, contents: dict[str, str] | None = None, **index: Any) -> str:
    return key("virtualenv", parse(entries), python, index={**INDEX, **index}, contents=contents or {})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["numpy", "pandas"], ["Pandas", "numpy "]),
        (["numpy>=1,<3"], ["numpy<3, >=1"]),
        (["numpy", "atoll", "fal_serverless>=0.6"], ["numpy"]),
        (["x", "--index-url https://a.example/s"], ["x", "--index-url https://me:secret@a.example/s/"]),
        (["x", "--trusted-host a.example"], ["x"]),
        (["git+https://token@a.example/x"], ["git+https://other@a.example/x"]),
    ],
)
def test_what_gives_the_same_result_has_the_same_key(one: list[str], other: list[str]) -> None:
    """Order, spelling, credentials and what the sandbox has already do not count."""
    assert made(one) == made(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["numpy"], ["numpy==2"]),
        (["numpy"], ["numpy", "--pre"]),
        (["numpy"], ["numpy[x]"]),
        (["numpy"], []),
        (["a", "b"], ["a-b"]),
        (["x", "--index-url https://a.example/s"], ["x", "--index-url https://b.example/s"]),
        (
            ["x", "--extra-index-url https://a.example", "--extra-index-url https://b.example"],
            ["x", "--extra-index-url https://b.example", "--extra-index-url https://a.example"],
        ),
        (["git+https://a.example/x@v1"], ["git+https://a.example/x@v2"]),
    ],
)
def test_what_may_give_another_result_has_another_key(one: list[str], other: list[str]) -> None:
    """Versions, extras, options and their order count."""
    assert made(one) != made(other)


@pytest.mark.parametrize("field", ["version", "abi", "platform", "implementation", "executable"])
def test_each_fact_of_the_interpreter_counts(field: str) -> None:
    """Another version, ABI, platform, implementation or place of the interpreter is another environment."""
    facts: dict[str, Any] = dataclasses.asdict(PYTHON) | {field: "other"}
    assert made(["numpy"]) != made(["numpy"], Interpreter(**facts))


def test_local_paths_count_by_content() -> None:
    """The same content elsewhere is the same environment; other content at the same place is another."""
    here, there = ["/srv/a"], ["/srv/b"]
    assert made(here, contents={"/srv/a": "1"}) == made(there, contents={"/srv/b": "1"})
    assert made(here, contents={"/srv/a": "1"}) != made(here, contents={"/srv/a": "2"})


def test_the_callers_index_counts_where_packages_are_wanted() -> None:
    """Index settings change the key, but not that of the environment without packages."""
    assert made(["x"]) != made(["x"], default=["https://a.example"])
    assert made(["x"], default=["https://a.example"]) != made(["x"], extra=["https://a.example"])
    assert made([]) == made(["--pre"], default=["https://a.example"])


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=3), min_size=3, max_size=3))
def test_fields_cannot_run_into_each_other(lists: list[list[str]]) -> None:
    """Lists that differ only in where one ends and the next begins give different keys."""
    default, extra, links = lists
    moved: dict[str, Any] = {"default": default[:-1], "extra": default[-1:] + extra, "links": links}
    same = moved["default"] == default
    assert (made(["x"], default=default, extra=extra, links=links) == made(["x"], **moved)) is same


def test_the_key_is_a_directory_name_of_fixed_length() -> None:
    """A key is 32 hexadecimal digits, and stable between versions of this test."""
    assert len(made(["numpy"])) == 32
    assert set(made(["numpy"])) <= set("0123456789abcdef")
    assert made(["numpy"]) == made(["numpy"])
