"""`on_done="notify"` for calls that a program waits for, and for detached ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll import LocalHost, isolated

from ..conftest import Home
from ..waiting import until

NOTIFIER = """
import json, sys
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(json.load(sys.stdin)) + chr(10))
"""


@pytest.fixture
def told(atoll_home: Home, tmp_path: Path) -> Any:
    """Return a function that gives the notifications so far, as the command of the settings has got them."""
    out, program = tmp_path / "told", tmp_path / "notifier.py"
    program.write_text(NOTIFIER)
    command = json.dumps([sys.executable, str(program), str(out)])
    (atoll_home.path / "settings.toml").write_text(f"[notifications]\ncommand = {command}\nafter_seconds = 0\n")

    def found() -> list[dict[str, Any]]:
        return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    return found


def double(value: int) -> int:
    if value < 0:
        raise ValueError("negative")
    return 2 * value


def items(count: int) -> Any:
    yield from range(count)


def test_a_program_is_told_of_its_calls(atoll_home: Home, told: Any) -> None:
    """Results and errors stay as they are; a `map` and a generator are told of once; short calls not, by the settings."""
    f = isolated(on_done="notify")(double)
    assert f(2) == 4
    (first,) = until(told)
    assert (first["function"], first["outcome"], first["detached"]) == ("double", "ok", False)
    with pytest.raises(ValueError, match="negative"):
        f(-1)
    until(lambda: len(told()) == 2)
    assert (told()[1]["outcome"], told()[1]["message"]) == ("error", "ValueError: negative")
    assert list(f.map([1, 2, 3])) == [2, 4, 6]
    assert list(f.on(retries=1).map([1, 2])) == [2, 4]
    assert list(isolated(on_done="notify")(items)(3)) == [0, 1, 2]
    until(lambda: len(told()) == 5)
    assert [one["function"] for one in told()[2:]] == ["map of double", "map of double", "items"]


def test_short_calls_and_failures_are_quiet(atoll_home: Home, told: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """A call below `after_seconds` tells nothing; a command that fails is one line on stderr, and the result counts."""
    file = atoll_home.path / "settings.toml"
    file.write_text(file.read_text().replace("after_seconds = 0", "after_seconds = 1000"))
    assert isolated(on_done="notify", host=LocalHost(atoll_home.path))(double)(2) == 4
    file.write_text('[notifications]\ncommand = ["/nonexistent"]\nafter_seconds = 0\n')
    assert isolated(on_done="notify", host=LocalHost(atoll_home.path))(double)(3) == 6
    seen = [""]

    def printed() -> bool:
        seen[0] += capfd.readouterr().err
        return "no notification" in seen[0]

    until(printed)
    assert seen[0].count("atoll: no notification: `/nonexistent` cannot be run") == 1
    assert told() == []


def test_a_detached_call_and_a_batch_are_told_of(atoll_home: Home, told: Any) -> None:
    """The keeper tells of each call's end and of a batch's once, whatever became of the program."""
    f = isolated(on_done="notify")(double)
    handle = f.spawn(4)
    assert handle.result(60) == 8
    (first,) = until(told)
    assert (first["call"], first["outcome"], first["detached"], first["batch"]) == (handle.id, "ok", True, "")
    batch = f.spawn_map([1, -2, 3])
    until(lambda: len(told()) == 2)
    assert (told()[1]["batch"], told()[1]["message"]) == (batch.id, "1 of 3 failed")
    assert isolated(double).spawn(5).result(60) == 10
    assert len(told()) == 2


def test_run_has_a_flag(atoll_home: Home, told: Any, tmp_path: Path) -> None:
    """`atoll run --notify` tells of the call; other values of the option are refused."""
    (tmp_path / "program.py").write_text("from atoll import isolated\n@isolated\ndef f():\n    return 7\n")
    assert atoll_home.atoll("run", "--notify", "program.py", cwd=tmp_path).stdout == "7\n"
    assert [one["function"] for one in told()] == ["f"]  # the command's end has waited for it
    with pytest.raises(ValueError, match="known is notify"):
        isolated(on_done="mail")  # type: ignore[call-overload]
