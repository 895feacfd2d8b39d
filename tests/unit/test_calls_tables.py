"""Tables of calls, as text: readable at 80 columns, whatever functions call themselves."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.cli.calls import rows
from atoll.cli.columns import Column, lay_out
from atoll.daemon.running_calls import in_words
from atoll.model.specs import Numbers

NOW = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1))


def live(state: str, **more: Any) -> dict[str, Any]:
    return {
        "call": "88b2c1aa-0123456789ab",
        "function": "train",
        "state": state,
        "since": NOW - 42,
        "queued_at": NOW - 60,
        "memory_bytes": 0,
        "cpu_seconds": 0.0,
        "worker": "",
        "position": -1,
        "detail": "",
        "machine_type": "",
        **more,
    }


def ended(outcome: str, **more: Any) -> dict[str, Any]:
    return {
        "call": "1f00d5e7-0123456789ab",
        "function": "load",
        "queued_at": NOW - 3600,
        "started_at": NOW - 3599,
        "queue_seconds": 1.0,
        "wall_seconds": 0.25,
        "cpu_seconds": 0.125,
        "peak_bytes": 687 << 20,
        "outcome": outcome,
        "error": "",
        "message": "",
        "worker": "w1",
        **more,
    }


CALLS = [
    live("running", memory_bytes=1400 << 20, cpu_seconds=80.0, worker="w12", machine_type="GPU"),
    live(
        "building", call="b01d0000-0123456789ab", function="fit_a_model_with_a_long_name", detail="Prepared 3 packages"
    ),
    live("waiting", call="3a17ed00-0123456789ab", position=2, since=NOW - 7_500, queued_at=NOW - 7_500),
    ended("ok"),
    ended("error", call="2e40a000-0123456789ab", error="KeyError", message="'missing'\n  File ..."),
    ended("refused", call="0ff00000-0123456789ab", started_at=0.0, queued_at=NOW - 200_000),
]


def shown(calls: list[dict[str, Any]], width: int | None) -> list[str]:
    return lay_out(rows.COLUMNS, rows.cells(calls, NOW), width)


def test_a_table_at_80_columns() -> None:
    """The id's first characters, the whole name, state, time and memory; what has no room is left out."""
    assert shown(CALLS[:4], 80) == [
        "id        function                      state            time   memory  made",
        "88b2c1aa  train                         running          42 s  1.4 GiB  11:59:00",
        "b01d0000  fit_a_model_with_a_long_name  building         42 s           11:59:00",
        "3a17ed00  train                         waiting 3  2 h 05 min           09:55:00",
        "1f00d5e7  load                          ok             250 ms  687 MiB  11:00:00",
    ]


def test_a_wider_terminal_shows_more() -> None:
    """The details of builds and errors, CPU, worker; columns without contents have no place."""
    assert shown(CALLS, 140) == [
        "id        function                      state            time   memory  made                 detail                      cpu  type  worker",
        "88b2c1aa  train                         running          42 s  1.4 GiB  11:59:00                                  1 min 20 s  GPU   w12",
        "b01d0000  fit_a_model_with_a_long_name  building         42 s           11:59:00             Prepared 3 packages",
        "3a17ed00  train                         waiting 3  2 h 05 min           09:55:00",
        "1f00d5e7  load                          ok             250 ms  687 MiB  11:00:00                                      125 ms        w1",
        "2e40a000  load                          KeyError       250 ms  687 MiB  11:00:00             'missing'                125 ms        w1",
        "0ff00000  load                          refused                         2026-11-27 04:26:40                                         w1",
    ]


def test_a_small_terminal_keeps_the_columns_that_matter() -> None:
    """At 50 columns the name is cut, and nothing else."""
    assert shown(CALLS[:3], 50) == [
        "id        function           state            time",
        "88b2c1aa  train              running          42 s",
        "b01d0000  fit_a_model_with…  building         42 s",
        "3a17ed00  train              waiting 3  2 h 05 min",
    ]


def test_a_pipe_gets_whole_lines() -> None:
    """Where there is no terminal, nothing is cut."""
    long = live("running", function="f" * 300, detail="d" * 300)
    assert "f" * 300 in shown([long], None)[1]
    assert "d" * 300 in shown([long], None)[1]


@pytest.mark.parametrize(
    "name", ["\x1b[2Jgone", "a\nforged  row", "\u202egnol", "\x00", "\ud800", "\u0301" * 50, "計算" * 40]
)
def test_names_cannot_act_on_the_terminal(name: str) -> None:
    """A function's name, a step and an error's text stay in their cells, on one line, printable."""
    for line in shown([live("running", function=name, detail=name), ended("error", error=name, message=name)], 80):
        assert line.isprintable()


@given(
    st.lists(st.tuples(st.text(), st.text(), st.integers(0, 10**15)), max_size=5),
    st.integers(20, 200),
)
def test_no_line_is_wider_than_the_terminal(found: list[tuple[str, str, int]], width: int) -> None:
    """As long as its narrowest form fits, a table does, whatever is in it."""
    from rich.cells import cell_len

    columns = (Column("name", least=6), Column("number", right=True, rank=1), Column("detail", least=4, rank=2))
    lines = lay_out(columns, [(name, str(number), detail) for name, detail, number in found], width)
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines) == len(found) + 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.0123, "12 ms"), (1.25, "1.25 s"), (59.9, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations(seconds: float, text: str) -> None:
    """A time is short, and precise where that matters."""
    assert rows.duration(seconds) == text
    assert len(rows.duration(1e300)) < 14


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (Numbers(), ""),
        (Numbers(millicores=500, memory_bytes=200_000_000), "cpu=0.5 memory=200MB"),
        (Numbers(gpus=2, card="A100", disk_bytes=5 * 10**9), "gpu=A100:2 disk=5GB"),
        (Numbers(gpus=1), "gpu=1"),
    ],
)
def test_plain_numbers_stand_beside_the_machine_type(numbers: Numbers, words: str) -> None:
    """As the function's options have them."""
    assert in_words(numbers) == words
    assert rows.of_machine({"machine_type": "S", "resources": words}).split() == ["S", *words.split()]
    assert rows.of_machine({"machine_type": "", "resources": words}) == words
