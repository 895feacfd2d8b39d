"""The screens that a person sees on a terminal, compared with those in `docs/screens`.

`make screens` writes them anew: an image for each, whose text is compared. Times, ids, sizes and lengths of bars are
not.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from ..conftest import ROOT, Home
from ..environments import Machine
from ..terminal_screen import TerminalProgram, normalized, svg, text_of

KEPT = ROOT / "docs" / "screens"
WRITES = os.environ.get("SCREENS", "") not in ("", "0")

DAY = """
import contextlib, io, os, sys, threading, time
from atoll import isolated
from atoll.sdk.display import call_lines, live_line, map_bar, usage

call_lines.LONG_SECONDS = live_line.SHOW_SECONDS = map_bar.SHOW_SECONDS = 0.3  # a day of a few seconds
usage.RECORD_SECONDS = usage.INTERRUPTED_SECONDS = 60.0  # of a busy machine
function = isolated(keep_alive=60, network="none")
PACKAGE = os.environ.get("PACKAGE", "pyjokes")

@isolated(requirements=[PACKAGE], network="none", keep_alive=60)
def first():
    return "hello from an environment of its own"

@isolated(requirements=[PACKAGE], network="none", keep_alive=60)
def measure(n):
    time.sleep(0.25)
    return n

@function
def train(seconds, *lines):
    for line in lines:
        print(line, flush=True)
        time.sleep(seconds / len(lines))
    if not lines:
        time.sleep(seconds)

@function
def piece(part):
    time.sleep(0.2 + 0.2 * part)  # the other one runs too by then
    print(f"part {part}: a line")
    time.sleep(0.5)
    print(f"part {part}: done")

@function
def score(n):
    time.sleep(0.08)
    if n % 10 == 7:
        raise ValueError(f"no score for item {n}")
    return n

@isolated(keep_alive=60, network="none", max_concurrency=1)
def one_at_a_time(seconds):
    time.sleep(seconds)

@function
def bar():
    for step in range(8):
        print(f"\\\\rstep {step}", end="", flush=True)
        time.sleep(0.12)

def ready():
    print("ready")

def build():
    print(first())

def long():
    train(1, "epoch 1: loss 0.93", "epoch 2: loss 0.41")
    print("trained")

def fail():
    try:
        score(7)
    except ValueError as error:
        print("caught:", error)

def many():
    print(sum(isinstance(one, int) for one in score.map(range(60), return_exceptions=True)), "scores")

def titled():
    print(sum(score.map((n for n in range(1, 7)), progress="scores", ordered=False)))

def beside():
    from tqdm import tqdm
    with tqdm(total=24, desc="batches", ncols=60, mininterval=0) as own:
        for _ in score.map(range(24), return_exceptions=True):
            own.update()
    print("after the bar")

def over():
    from tqdm import tqdm
    print(sum(tqdm(measure.map(range(12)), total=12, desc="measured", ncols=60, mininterval=0)))

def live():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress
    with Progress("{task.description}", BarColumn(bar_width=20), MofNCompleteColumn()) as progress:
        epochs = progress.add_task("epochs", total=3)
        for _ in range(3):
            train(0.6)
            progress.advance(epochs)
    print("three epochs")

@isolated(keep_alive=60, network="none", retries=2)
def dies():
    os._exit(7)

def again():
    try:
        dies()
    except Exception as error:
        print("caught:", type(error).__name__)

def inside():
    bar()
    print("after it")

def parallel():
    for future in [piece.submit(part) for part in (1, 2)]:
        future.result()
    print("both")

def prompt():
    print("name: ", end="", flush=True)
    train(0.8)
    print("typed")

def replaced():
    with contextlib.redirect_stdout(io.StringIO()) as kept:
        train(0.8, "not on the terminal")
    print("kept", kept.getvalue().strip())

def forked():
    child = os.fork()
    if not child:
        print("from the child", flush=True)
        train(0.5)
        os._exit(0)
    train(0.8)
    os.waitpid(child, 0)
    print("parent")

def leaves():
    for _ in score.map(range(200), return_exceptions=True, progress=True):
        if _ == 20:
            os._exit(3)

def evil():
    plain = train.__wrapped__
    plain.__name__ = plain.__qualname__ = "x\\x1b]0;PWNED\\x07\\nFORGED"
    function(plain)(0.8)

def wait():
    one_at_a_time(0.1)

def hold():
    one_at_a_time(30)

def some():
    train(0.1)
    for number in range(2):
        try:
            a_function_with_quite_a_long_name_for_its_column(number)
        except ValueError:
            pass

@function
def a_function_with_quite_a_long_name_for_its_column(number):
    raise ValueError(f"no value for {number}: the message of this error says more than has room in a table")

@function
def sleeper():
    time.sleep(60)

for step in sys.argv[1:] if __name__ == "__main__" else ():
    globals()[step]()
    if len(sys.argv) > 2:
        sys.stdin.readline()
        print("\\\\x1b[2J\\\\x1b[H", end="", flush=True)
""".replace("\\\\", "\\")

Start = Callable[..., TerminalProgram]


@pytest.fixture
def start(shared_home: Home, tmp_path: Path) -> Iterator[Start]:
    """Start steps of the day on a terminal, `atoll` with a command line, or a program of its own."""
    (tmp_path / "day.py").write_text(DAY)
    running: list[TerminalProgram] = []

    def run(*words: str, home: Home = shared_home, cli: bool = False, **options: Any) -> TerminalProgram:
        variables = {name: value for name, value in home.environment().items() if name not in {"NO_COLOR", "TERM"}}
        env = {**variables, "TERM": "xterm-256color", **options.pop("env", {})}
        code = ("-c", "import sys; from atoll.cli.main import main; sys.exit(main())") if cli else ("day.py",)
        program = TerminalProgram([sys.executable, *code, *words], env, cwd=str(tmp_path), **options)
        running.append(program)
        return program

    yield run
    for program in running:
        program.close()


def check(program: TerminalProgram, name: str, title: str) -> None:
    """Compare a screen with the kept one, or keep it."""
    path = KEPT / f"{name}.svg"
    if WRITES:
        path.parent.mkdir(exist_ok=True)
        known = path.read_text("utf-8") if path.exists() else ""
        if normalized(text_of(known)) != normalized(program.text) or "SCREENS_ALL" in os.environ:
            path.write_text(svg(program.screen, title), "utf-8")
    assert normalized(program.text) == normalized(text_of(path.read_text("utf-8")))


def test_a_first_program_its_build_and_the_tables_afterwards(start: Start, atoll_home: Home, tmp_path: Path) -> None:
    """The build is told while it runs, to two programs that wait for it, and leaves one line; tables fit 80 columns."""
    Machine.tree(cast("Any", None), "surfboard", "    import time; time.sleep(2)", place=tmp_path)
    steps = (("ready", step) for step in ("build", "over"))
    build, over = programs = [start(*one, home=atoll_home, env={"PACKAGE": "./surfboard-1"}) for one in steps]
    for one in programs:
        one.until("ready")
    for one in programs:
        one.press("\n")
    build.until(r"^building · building surfboard.* · \d s")
    check(build, "build", "The build of an environment")
    over.until(r"measured: +0%.*\n.*building · building surfboard.* · \d s")
    check(over, "tqdm-over-map-build", "A bar around a map, whose environment is built")
    over.until(r"measured:.*\d/12 .*\n[1-9]\d*/12 ▕.* s left")
    check(over, "tqdm-over-map", "A bar around a map")
    build.until("of its own")
    check(build, "build-ended", "A first program and the build of its environment")
    assert re.search(r"^built env [0-9a-f]{8} · 1 package · [0-9.]+ KiB · \d+ s\n", build.text)
    assert re.search(r"✓ first · \d+ ms · built \d s · (waited \d s · )?peak \d+ MiB · id [0-9a-f]{8}\n", build.text)
    over.until("(?m)^66$")
    check(over, "tqdm-over-map-ended", "The bar around a map has ended")
    for one in programs:
        one.press("\n")
    assert [one.finish() for one in programs] == [0, 0]
    tables(start, atoll_home)


def tables(start: Start, home: Home) -> None:
    """See the tables of calls and of the machine, while one call runs and another one waits for it."""
    assert start("some", home=home).finish() == 0
    holder = start("hold", home=home)
    holder.until(r"running one_at_a_time · \d s")
    waiter = start("wait", home=home)
    waiter.until(r"waiting · .*one_at_a_time.*\([0-9a-f]{8}\) · \d s")  # the holder's id comes with a later look
    check(waiter, "waiting", "A call that waits for another one")
    shown = {}
    for words, name, title in (
        (["calls", "list", "-n", "4"], "calls-list", "atoll calls list"),
        (["calls", "list", "--running"], "calls-running", "atoll calls list --running"),
        (["status"], "status", "atoll status"),
    ):
        command = start(*words, home=home, cli=True)
        assert command.finish() == 0
        shown[name] = command.text
        check(command, name, title)
    assert "…" not in re.sub(r"a_function_with\w*…", "", shown["calls-list"])
    assert re.search(r"waiting 1 .* max_concurrency of one_at_a", shown["calls-running"])
    for one in (holder, waiter):
        one.press("\x03")
        assert one.finish() == -signal.SIGINT


def test_a_day(start: Start) -> None:
    """A long call, one that fails, a `map`, a bar of the program, a bar of the function, calls side by side."""
    steps = "long, fail, many, beside, live, again, inside, parallel, titled, prompt, replaced, forked"
    train = start(*steps.split(", "))

    train.until(r"epoch 2: loss 0.41\nrunning train · \d s")
    check(train, "call", "A call of some seconds")
    train.until("trained")
    check(train, "call-ended", "The line that stays of a long call")
    train.press("\n")
    train.until("caught: .*item 7")
    check(train, "call-failed", "A call that fails")
    train.press("\n")
    train.until(r"\d/60 ▕.*▏ \d running · \d failed · \d s left")
    check(train, "map", "The bar of a map")
    train.until("54 scores")
    check(train, "map-ended", "The line that stays of a map with failed calls")
    train.press("\n")
    train.until(r"batches:.*1\d/24.*\n1\d/24 ▕.*failed")
    check(train, "map-beside-tqdm", "The display beside a bar of the program")
    train.until("after the bar")
    check(train, "map-beside-tqdm-ended", "Both bars have ended")
    train.press("\n")
    train.until(r"epochs .*1/3 *\nrunning train · \d s")
    check(train, "rich-progress", "Calls below a progress display of rich")
    train.until("three epochs")
    check(train, "rich-progress-ended", "The progress display has ended")
    train.press("\n")
    train.until("caught: WorkerDied")
    check(train, "retries", "A call that is made again")
    train.press("\n")
    train.until(r"step [4-7]\nrunning bar · \d s")
    train.until("after it")
    train.press("\n")
    train.until("both")
    check(train, "parallel", "Calls that print at the same time")
    train.press("\n")
    train.until("(?m)^21$")
    train.press("\n")
    train.until(r"name: running train · \d s")
    train.until(r"name: *\n✓ train.*\ntyped")
    train.press("\n")
    train.until(r"(?m)^kept not on the terminal$")
    train.press("\n")
    train.until("(?m)^parent$")
    assert train.text.count("from the child") == 1
    train.press("\n")
    assert train.finish() == 0
    assert train.is_restored


def test_a_narrow_window_that_changes(start: Start) -> None:
    """The bar fits into 40 columns without colours, follows the window's size, and leaves nothing behind."""
    program = start("many", columns=40, env={"NO_COLOR": "1"})
    program.until(r"(?m)^\d+/60 ▕.*▏ \d failed · \d s left")
    check(program, "narrow", "The bar of a map in 40 columns")
    program.resize(64, 24)
    program.until(lambda text: max(map(len, text.splitlines())) > 44)
    program.resize(30, 24)
    program.until(lambda text: re.search(r"^\d+/60 .*(left| s)$", text) and max(map(len, text.splitlines())) < 30)
    assert program.finish() == 0
    assert re.fullmatch(r"✗ score · 60 calls · 6 failed\n54 scores\n", program.text), program.text
    assert not re.search(rb"\x1b\[[0-9;]*[1-9][0-9;]*m", program.written)
    assert program.is_restored


def test_plain_lines_and_none(start: Start) -> None:
    """Without movements of the cursor there are lines that stay alone; with `none` there is the function's text."""
    output = "epoch 1: loss 0.93\nepoch 2: loss 0.41\n"
    plain = start("long", env={"ATOLL_DISPLAY": "plain"})
    dumb = start("long", env={"TERM": "dumb"})
    none = start("long", env={"ATOLL_DISPLAY": "none"})
    wrong = start("long", env={"ATOLL_DISPLAY": "no\x1b[2Jne", "TERM": "dumb"})
    for program in (plain, dumb, none, wrong):
        assert program.finish() == 0
    for program in (plain, dumb):
        assert re.fullmatch(
            rf"{output}✓ train · 1.\d s( · waited \d s)? · peak [\d.]+ [KM]iB · id [0-9a-f]{{8}}\ntrained\n",
            program.text,
        )
        assert b"\x1b" not in program.written
    assert none.text == f"{output}trained\n"
    assert "`ATOLL_DISPLAY` is `no\\x1b[2Jne`" in wrong.text
    assert b"\x1b" not in wrong.written
    check(plain, "plain", "ATOLL_DISPLAY=plain")


def test_one_stream_is_redirected(start: Start, tmp_path: Path) -> None:
    """A file gets the function's exact output; the terminal has the display if it has standard error."""
    output = b"epoch 1: loss 0.93\nepoch 2: loss 0.41\ntrained\n"
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        shown = start("long", redirect={1: out.fileno()})
        plain = start("long", redirect={2: err.fileno()})
    shown.until(r"^running train · \d s")
    assert [shown.finish(), plain.finish()] == [0, 0]
    assert (tmp_path / "out").read_bytes() == output
    assert (tmp_path / "err").read_bytes() == b""
    assert plain.written.replace(b"\r", b"") == output
    check(shown, "redirected", "Standard output is a file")


def test_ctrl_c_is_one_line(start: Start) -> None:
    """It names the function and its call; the status is 130, and the terminal is as before."""
    program = start("run", "day.py::sleeper", cli=True)
    program.until(r"running sleeper · \d s")
    program.press("\x03")
    assert program.finish() == 130
    check(program, "interrupted", "Ctrl-C")
    assert re.fullmatch(
        r"\^C\n✗ sleeper · interrupted · [\d.]+ s( · waited \d s)?( · peak [\d.]+ [KM]iB)? · id [0-9a-f]{8}\n",
        program.text,
    )
    assert program.is_restored


def test_names_cannot_act_and_a_hard_end_restores(start: Start) -> None:
    """A function's name is escaped; a program that ends in the middle of a bar leaves wrapping and cursor as they were."""
    evil, leaves = start("evil"), start("leaves")
    evil.until(r"running x\\x1b\]0;PWNED\\x07")
    assert [evil.finish(), leaves.finish()] == [0, 3]
    assert b"\x1b]0" not in evil.written
    assert evil.text.startswith("✓ x\\x1b]0;PWNED\\x07")
    assert "\nFORGED" not in evil.text
    assert leaves.is_restored
