"""On a terminal a function sees a terminal of its caller's; through pipes, and with `terminal=False`, it sees pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..waiting import PATIENCE_SECONDS, until
from .conftest import Place

LINES, COLUMNS = 50, 132
LIVE_LINE = re.compile(r"(\x1b\[\?7l(\x1bD)*(\x1b\[\d+A)?)?\x1b7.*?\x1b8(\x1b\[\?7h)?|\x1b\[J", re.DOTALL)
"""What the line about calls that last writes; which ones do, the machine's speed decides."""
SECRET = "TERMINAL_TEST_SECRET"

BEGIN = """
import contextlib, fcntl, itertools, json, os, shutil, signal, struct, subprocess, sys, termios, time
from atoll import errors, isolated

def own(name="terminal", **options):
    return isolated(env={"CONFORMANCE": name}, keep_alive=60, **options)

def seen():
    '''What a function can tell of its terminal.'''
    names = ("TERM", "COLORTERM", "NO_COLOR", "PAGER", "TERMINAL_TEST_SECRET")
    return {
        "terminals": [os.isatty(0), sys.stdout.isatty(), sys.stderr.isatty(), sys.__stdout__.isatty()],
        "sizes": [list(os.get_terminal_size()), list(shutil.get_terminal_size())] if os.isatty(1) else [],
        "variables": {name: os.environ[name] for name in names if name in os.environ},
        "child": subprocess.run(["sh", "-c", "test -t 1 && test -t 2 && echo $TERM >&2"], stderr=None).returncode,
    }

def tell(found):
    print("TOLD " + json.dumps(found))
"""


class Run:
    """A program of its own that has run on a terminal."""

    def __init__(self, place: Place, path: Path, text: str) -> None:
        path.write_text(BEGIN + text)
        ours, theirs = pty.openpty()
        try:
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
            variables = {**os.environ, **place.variables, "TERM": "xterm-kitty", "COLORTERM": "truecolor", SECRET: "1"}
            for name in ("NO_COLOR", "PAGER", "COLUMNS", "LINES"):
                variables.pop(name, None)
            with subprocess.Popen(
                [sys.executable, str(path)], stdin=theirs, stdout=theirs, stderr=theirs, env=variables
            ) as run:
                os.close(theirs)
                theirs = -1
                try:
                    self.text = LIVE_LINE.sub("", _read(ours))
                except BaseException:
                    run.kill()
                    raise
            assert run.returncode == 0, self.text
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)

    @property
    def told(self) -> list[Any]:
        """What the program has told, in its order."""
        return [json.loads(line[5:]) for line in self.text.split("\r\n") if line.startswith("TOLD ")]


def _read(terminal: int) -> str:
    pieces = list[bytes]()
    while True:
        assert select.select([terminal], [], [], PATIENCE_SECONDS)[0], pieces
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # nobody has its other end any more
            return b"".join(pieces).decode()
        pieces.append(data)


OnTerminal = Callable[[str], Run]


@pytest.fixture
def on_terminal(place: Place, tmp_path: Path) -> OnTerminal:
    """Run the text of a program on a terminal."""
    return lambda text: Run(place, tmp_path / "program.py", text)


PIPES: dict[str, Any] = {"terminals": [False] * 4, "sizes": [], "variables": {}, "child": 1}


def test_a_function_sees_the_callers_terminal(on_terminal: OnTerminal) -> None:
    """Size, colours, both streams and programs: as in the caller; nothing else of the environment, and no keys."""
    run = on_terminal(
        "tell(own()(seen)())\ntell(own(terminal=False)(seen)())\ntell(own()(seen).submit().result())\n"
        "tell(next(own()(seen).map([]), None))\ntell([one for one in own()(lambda _: seen()).map([1])][0])\n"
    )
    size = [COLUMNS, LINES]
    variables = {"TERM": "xterm-kitty", "COLORTERM": "truecolor", "PAGER": "cat"}
    terminal = {"terminals": [False, True, True, True], "sizes": [size, size], "variables": variables, "child": 0}
    assert run.told == [terminal, PIPES, PIPES, None, PIPES]
    assert run.text.startswith("xterm-kitty\r\n")


def test_the_size_follows_the_callers_window(on_terminal: OnTerminal) -> None:
    """Before each call, and while a function prints."""
    run = on_terminal("""
def size(lines):
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80, 0, 0))

@own()
def sizes():
    while True:
        print("x")
        yield os.get_terminal_size().lines

items = sizes()
first = next(items)
size(30)
third = next((one for one in itertools.islice(items, 100_000) if one == 30), 0)  # it runs ahead
items.close()
size(20)
tell([first, third, next(sizes())])
""")
    assert run.told == [[LINES, 30, 20]]


def test_text_arrives_in_order_and_whole(on_terminal: OnTerminal) -> None:
    """Bars, both streams, programs, and more than a terminal holds; all of it before the call returns."""
    run = on_terminal("""
@own()
def work():
    for number in range(3):
        print(f"\\rbar {number}", end="", flush=True)
    print()
    for number in range(100):
        print("out", number)
        print("err", number, file=sys.stderr)
        if number % 50 == 0:
            subprocess.run(["sh", "-c", "echo program"])
    sys.stdout.write("y" * 300_000 + "\\n")
    os.write(1, b"\\xce\\xa9 \\x1b[31mred\\x1b[0m")

work()
print("<after>")
for number in range(200):
    own()(lambda one: print(one, end=""))(number)
    print(".", end="")
""")
    lines = ["\rbar 0\rbar 1\rbar 2"]
    for number in range(100):
        lines += [f"out {number}", f"err {number}", *(["program"] if number % 50 == 0 else [])]
    lines += ["y" * 300_000, "Ω \x1b[31mred\x1b[0m<after>", "".join(f"{number}." for number in range(200))]
    assert run.text == "\r\n".join(lines)


def test_the_last_text_of_a_killed_function_arrives(on_terminal: OnTerminal) -> None:
    """It is in the caller's output and in the error; an exception's traceback comes as ever."""
    run = on_terminal("""
@own()
def die():
    print("last words", end="")
    os.kill(os.getpid(), signal.SIGKILL)

@own()
def fail():
    print("before")
    raise ValueError("as ever")

for _ in range(3):
    try:
        die()
    except errors.WorkerDied as error:
        tell(error.details["last_output"])
try:
    fail()
except ValueError as error:
    tell(str(error))
tell(own()(seen)()["terminals"])
""")
    assert len(re.findall(r"last words\r\n\S+✗\S+ die · [^\r]*\r\nTOLD \"last words\"", run.text)) == 3
    assert run.text.count("before\r\n") == 1
    assert 'TOLD "as ever"' in run.text
    assert run.text.rstrip().endswith("TOLD [false, true, true, true]")


def test_what_a_call_does_to_its_terminal_does_not_reach_the_next(on_terminal: OnTerminal) -> None:
    """Held output, modes, closed descriptors and variables; also where `setup_function` has had a terminal."""
    run = on_terminal("""
@own()
def spoil():
    import tty
    tty.setraw(1)
    modes = termios.tcgetattr(1)
    modes[1] |= termios.OPOST
    termios.tcsetattr(1, termios.TCSANOW, modes)
    os.environ["TERM"] = "spoilt"
    termios.tcflow(1, termios.TCOOFF)
    os.closerange(0, 3)

@own(setup_function=lambda: os.environ.get("TERM"))
def prepared(found):
    return [found, os.environ.get("TERM"), os.getpid()]

spoil()
tell(own()(lambda: [termios.tcgetattr(1)[1] & termios.OPOST, seen()["variables"]["TERM"]])())
(found, mine, one), (_, pipes, other) = prepared(), prepared.submit().result()
tell([found, mine, pipes, one == other])
""")
    assert run.told == [[0, "xterm-kitty"], ["xterm-kitty", "xterm-kitty", None, True]]


def test_the_next_program_has_no_part_in_the_terminal(on_terminal: OnTerminal, place: Place, tmp_path: Path) -> None:
    """A warm worker's next lease has pipes; a descriptor that a function has kept leads nowhere, and reads nothing."""
    run = on_terminal("""
@own("kept terminal")
def keep():
    sys.kept_terminal = os.dup(1)
    try:
        os.read(1, 1)
    except OSError as error:
        return [os.getpid(), error.strerror, os.environ["TERM"]]

tell(keep())
""")

    ((pid, read, term),) = run.told
    assert (read, term) == (os.strerror(9), "xterm-kitty")
    text = """
@own("kept terminal")
def look():
    try:
        os.write(sys.kept_terminal, b"from the next program")
    except OSError as error:
        return [os.getpid(), error.strerror, os.isatty(1), os.environ.get("TERM")]

tell(look())
"""
    with place.program(tmp_path / "next.py", BEGIN + text) as program:
        out, _ = program.communicate(timeout=PATIENCE_SECONDS)
    assert out.decode() == f"TOLD {json.dumps([pid, os.strerror(5), False, None])}\n"


def test_a_function_saves_its_work_when_its_caller_has_gone(on_terminal: OnTerminal, place: Place) -> None:
    """It prints into a terminal that is no more, without an error."""
    on_terminal("""
@own("gone", grace=60)
def work():
    try:
        for name in ("gone", "waits"):
            os.path.exists(f"/data/terminal-{name}") and os.remove(f"/data/terminal-{name}")
        yield
        open("/data/terminal-waits", "w").close()
        while True:
            time.sleep(0.1)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            while True:
                os.write(1, b"on and on")
        print("into a terminal that is no more")
        open("/data/terminal-gone", "w").close()

items = work()
next(items)
while not own("looks")(os.path.exists)("/data/terminal-waits"):  # at its `yield` it would be closed, and not interrupted
    time.sleep(0.1)
os._exit(0)
""")
    until(lambda: place.isolated(os.path.exists)("/data/terminal-gone"))


def test_a_function_goes_on_where_no_terminal_can_be_made(on_terminal: OnTerminal, place: Place) -> None:
    """It prints to pipes, and nothing is said."""
    if not place.here:
        pytest.skip("the server makes the terminal, in a process of its own")
    run = on_terminal("""
def refuse():
    raise OSError("none left")

os.openpty = refuse
own()(lambda: print("both", os.isatty(1), flush=True) or print("one stream", file=sys.stderr))()
""")
    assert run.text == "both False\r\none stream\r\n"


def test_functions_that_a_function_calls_see_it_too(on_terminal: OnTerminal) -> None:
    """With its size and variables, also those whose results are plain data."""
    run = on_terminal("""
@own(results="data")
def inner():
    print("from inside")
    return [*os.get_terminal_size(), os.environ["TERM"], sys.stderr.isatty()]

tell(own()(lambda: inner())())
tell(inner())
""")
    assert run.told == [[COLUMNS, LINES, "xterm-kitty", True]] * 2
    assert run.text.count("from inside\r\n") == 2


def test_through_pipes_nothing_changes(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """No terminal, none of its variables, whatever the option says."""

    def look() -> list[Any]:
        return [os.isatty(1), os.isatty(2), os.environ.get("TERM"), os.environ.get("PAGER")]

    assert place.isolated(look)() == place.isolated(look, terminal=True)() == [False, False, None, None]


@pytest.mark.parametrize("value", ["yes", 1, 0])
def test_an_option_that_is_no_truth_value_is_refused(place: Place, value: Any) -> None:
    """The error names the option."""
    with pytest.raises(TypeError, match="terminal"):
        place.isolated(abs, terminal=value)
