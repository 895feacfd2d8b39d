"""Children and what is kept of their output."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc

import pytest

from atoll import process
from atoll.environments.build import workshop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are supervised on Linux")


def run(code: str, lines: list[str]) -> process.Completed:
    return asyncio.run(process.run([sys.executable, "-I", "-S", "-c", code], env={}, on_line=lines.append))


def test_lines_come_whole_and_without_their_ends() -> None:
    """Lines and `\\r` pieces come one by one, however they were written; empty ones do not."""
    lines: list[str] = []
    done = run("import os\nfor part in ('a', 'b\\n\\nc\\rd', 'e'): os.write(1, part.encode())", lines)
    assert lines == ["ab", "c", "de"]
    assert done == process.Completed(0, "ab\n\nc\rde")


def test_of_endless_output_the_end_is_kept() -> None:
    """A child that prints without end costs bounded memory, also where it never ends a line."""
    lines: list[str] = []
    tracemalloc.start()
    try:
        done = run("import sys\nfor _ in range(640): sys.stdout.write('x' * 65536)\nprint('end')", lines)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(done.output) == process.KEPT_BYTES
    assert done.output.endswith("xend\n")
    assert [len(line) for line in lines] == [process.LINE_BYTES]
    assert peak < 20 << 20


@pytest.mark.parametrize(("line", "count"), [("x", workshop.MAX_LINES), ("x" * 4096, workshop.MAX_CHARACTERS // 4096)])
def test_lines_are_passed_on_up_to_a_bound(line: str, count: int) -> None:
    """Beyond the bound of lines or characters one line says so, and nothing follows."""
    passed: list[str] = []
    bounded = workshop.BoundedLog(passed.append)
    for _ in range(count + 1000):
        bounded(line)
    assert passed[:count] == [line] * count
    assert len(passed) == count + 1
    assert "left out" in passed[-1]
