"""What a function prints arrives at the caller: all of it, in order, on its own stream."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from atoll import errors

from ..waiting import PATIENCE_SECONDS
from .conftest import Place


def run(place: Place, function: Any, capfd: pytest.CaptureFixture[str], *args: Any) -> tuple[str, str]:
    """Run a call that prints, and return what arrived on stdout and stderr."""
    capfd.readouterr()
    place.isolated(function)(*args)
    captured = capfd.readouterr()
    return captured.out, captured.err


def by_print() -> None:
    print("one", 2, sep="-", end="!\n")
    print("problem", file=sys.stderr)


def by_write() -> None:
    sys.stdout.write("no newline")
    sys.stderr.buffer.write(b"bytes")


def by_descriptor() -> None:
    os.write(1, b"raw")
    os.write(2, b"err")


def by_subprocess() -> None:
    subprocess.run(["sh", "-c", "echo sub; echo problem >&2"], check=True)


def by_shell() -> None:
    os.system("printf shell; printf shell >&2")


def by_c() -> None:
    import ctypes

    ctypes.CDLL(None).printf(b"from C\n")


def by_fork() -> None:
    pid = os.fork()
    if pid == 0:
        os.write(1, b"child\n")
        os._exit(0)
    os.waitpid(pid, 0)


def by_thread() -> None:
    thread = threading.Thread(target=print, args=("thread",))
    thread.start()
    thread.join()


def by_logging() -> None:
    logging.getLogger("conformance").warning("logged")


def by_warning() -> None:
    warnings.warn("warned", UserWarning, stacklevel=1)


def by_dunder() -> None:
    print("dunder", file=sys.__stdout__)


WAYS: dict[str, tuple[Any, str, str]] = {
    "print": (by_print, "one-2!\n", "problem\n"),
    "write without a newline": (by_write, "no newline", "bytes"),
    "a descriptor": (by_descriptor, "raw", "err"),
    "a subprocess": (by_subprocess, "sub\n", "problem\n"),
    "a shell": (by_shell, "shell", "shell"),
    "C code": (by_c, "from C\n", ""),
    "a forked child": (by_fork, "child\n", ""),
    "a thread": (by_thread, "thread\n", ""),
    "logging": (by_logging, "", "logged\n"),
    "the original stream": (by_dunder, "dunder\n", ""),
}


@pytest.mark.parametrize("name", WAYS)
def test_output_arrives_on_its_stream(place: Place, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """Whoever writes, and however: it arrives on the stream that it was written to."""
    function, out, err = WAYS[name]
    assert run(place, function, capfd) == (out, err)


def test_a_warning_is_shown(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """A warning of the function is printed on stderr."""
    assert "UserWarning: warned" in run(place, by_warning, capfd)[1]


def test_texts_of_other_scripts_and_broken_bytes_arrive(place: Place, capfdbinary: Any) -> None:
    """Output is bytes: what is no UTF-8 arrives as it is."""

    def write() -> None:
        print("Ωμέγα 🏝️")
        sys.stdout.flush()
        os.write(1, b"\xff\xfe\x00\n")

    place.isolated(write)()
    assert capfdbinary.readouterr().out == "Ωμέγα 🏝️\n".encode() + b"\xff\xfe\x00\n"


def test_a_progress_bar_comes_through(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Carriage returns and control codes are left alone."""

    def progress() -> None:
        for percent in range(0, 101, 25):
            sys.stderr.write(f"\r\x1b[32m{percent:3d}%\x1b[0m")
        sys.stderr.write("\n")

    expected = "".join(f"\r\x1b[32m{percent:3d}%\x1b[0m" for percent in range(0, 101, 25)) + "\n"
    assert run(place, progress, capfd) == ("", expected)


def test_a_hundred_thousand_lines_arrive_in_order(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """None is lost, doubled or out of place."""

    def count() -> None:
        for number in range(100_000):
            print(number)

    assert run(place, count, capfd)[0].split() == [str(number) for number in range(100_000)]


def test_one_huge_line_arrives(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Twenty megabytes without a newline are as good as any output."""

    def write() -> None:
        sys.stdout.write("x" * 20_000_000)

    assert len(run(place, write, capfd)[0]) == 20_000_000


def test_both_streams_full_at_once_do_not_block(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Megabytes on stderr while stdout is full, from two threads: both arrive whole."""

    def flood() -> None:
        def write(number: int) -> None:
            for _ in range(3000):
                os.write(number, b"y" * 999 + b"\n")

        threads = [threading.Thread(target=write, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    out, err = run(place, flood, capfd)
    assert (len(out), len(err)) == (3_000_000, 3_000_000)


def test_output_before_an_exception_arrives_before_it(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """When the error is raised here, all that was printed before is here."""

    def print_and_fail() -> None:
        print("before")
        raise ValueError("then")

    with pytest.raises(ValueError, match="then"):
        place.isolated(print_and_fail)()
    assert capfd.readouterr().out == "before\n"


def test_a_megabyte_before_a_kill_arrives(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Output that was written before the worker was killed is not lost."""

    def write_and_die() -> None:
        for number in range(20_000):
            print(f"{number:049d}")
        os.kill(os.getpid(), 9)

    with pytest.raises(errors.WorkerDied) as caught:
        place.isolated(write_and_die)()
    assert len(capfd.readouterr().out) == 1_000_000
    assert caught.value.last_output.endswith("19999\n")


def test_output_of_calls_side_by_side_keeps_each_ones_order(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """Calls that run at the same time print into one stream; nothing is lost, and each one's own is in order."""

    def speak(first: int) -> None:
        for number in range(200):
            print(chr(first + number))

    starts = [0x4E00 + 0x400 * who for who in range(4)]
    list(place.isolated(speak).map(starts))
    printed = capfd.readouterr().out
    for first in starts:
        own = [character for character in printed if first <= ord(character) < first + 200]
        assert own == [chr(first + number) for number in range(200)]
    assert printed.count("\n") == len(printed) - 800 == 800


def test_a_function_that_closes_its_streams_does_no_harm(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """The next call in the same worker prints again."""

    def close() -> str:
        os.close(1)
        sys.stderr.close()
        return "closed"

    def hello() -> None:
        print("hello")

    assert place.isolated(close)() == "closed"
    assert run(place, hello, capfd)[0] == "hello\n"


def test_a_function_that_redirects_its_stdout_does_not_redirect_the_next(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """Streams are put back between two calls of one worker."""

    def redirect() -> None:
        sys.stdout = open(os.devnull, "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    def hello() -> None:
        print("out")
        print("err", file=sys.stderr)

    place.isolated(redirect)()
    assert run(place, hello, capfd) == ("out\n", "err\n")


def test_stdin_is_empty(place: Place) -> None:
    """A function that reads its input finds the end, and does not wait for the caller's terminal."""

    def read() -> tuple[str, str, bytes]:
        try:
            line = input()
        except EOFError:
            line = "<end>"
        return line, sys.stdin.read(), os.read(0, 10)

    assert place.isolated(read)() == ("<end>", "", b"")


def test_a_subprocess_reads_an_empty_input(place: Place) -> None:
    """`cat` in a function ends at once."""

    def cat() -> int:
        return os.system("cat")

    assert place.isolated(cat)() == 0


def test_output_is_live(place: Place, tmp_path: Path) -> None:
    """The caller sees a partial line while the function still runs: it answers, and the function ends."""
    text = (
        "import os, sys, time\n"
        "from atoll import isolated\n"
        "@isolated\n"
        "def wait():\n"
        "    sys.stdout.write('half a line')\n"
        "    deadline = time.monotonic() + 120\n"
        "    while not os.path.exists('/data/conformance-live') and time.monotonic() < deadline: time.sleep(0.01)\n"
        "    os.remove('/data/conformance-live')\n"
        "    print(' and the rest')\n"
        "wait()\n"
    )

    def go_on() -> None:
        Path("/data/conformance-live").touch()

    with place.program(tmp_path / "live.py", text) as run:
        assert run.stdout is not None
        assert os.read(run.stdout.fileno(), 100) == b"half a line"
        place.isolated(go_on)()
        out, err = run.communicate(timeout=120)
    assert (run.returncode, out, err) == (0, b" and the rest\n", b"")


def test_a_caller_without_stdout_does_not_fail(place: Place, tmp_path: Path) -> None:
    """A program whose output nobody reads any more learns of it as any program does, and does not wait."""
    text = (
        "import os, sys\n"
        "from atoll import isolated\n"
        "@isolated\n"
        "def shout():\n"
        "    print('x' * 100_000)\n"
        "    return 'result'\n"
        "os.read(0, 1)\n"
        "try:\n"
        "    said = shout()\n"
        "except BrokenPipeError as error:\n"
        "    said = type(error).__name__\n"
        "os.write(2, said.encode())\n"
        "os._exit(0)\n"
    )
    with place.program(tmp_path / "mute.py", text) as run:
        assert run.stdout is not None
        run.stdout.close()
        run.stdout = None
        _, err = run.communicate(b"go", timeout=120)
    assert err in (b"result", b"BrokenPipeError")


def in_turns(count: int) -> None:
    """Print on both streams in turns, in each of the ways that programs have."""
    for number in range(count):
        print(f"out {number}")
        print(f"err {number}", file=sys.stderr)


def in_turns_by_programs(count: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None)
    for number in range(count):
        subprocess.run(["sh", "-c", f"echo out {number}; echo err {number} >&2"], check=True)
        libc.printf(b"out C\n")
        os.write(2, b"err write\n")


def test_streams_that_are_one_file_keep_their_order(place: Place, tmp_path: Path) -> None:
    """With `2>&1`, on a terminal and in a log, all lines come as the function printed them, also those of programs."""
    text = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from atoll import isolated\n"
        "from tests.conformance.test_output import in_turns, in_turns_by_programs\n"
        "isolated(in_turns)(200)\n"
        "isolated(in_turns_by_programs)(3)\n"
        "print('end', file=sys.stderr)\n"
    )
    path = tmp_path / "program.py"
    path.write_text(text)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(path), root],
        env={**os.environ, **place.variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    expected = [f"{name} {number}" for number in range(200) for name in ("out", "err")]
    for number in range(3):
        expected += [f"out {number}", f"err {number}", "out C", "err write"]
    assert done.stdout.splitlines() == [*expected, "end"]


class Cell:
    """A stream of a notebook: both of them show on one page."""

    def __init__(self, name: str, page: list[tuple[str, str]]) -> None:
        self._name = name
        self._page = page

    def write(self, text: str) -> int:
        self._page.append((self._name, text))
        return len(text)

    def flush(self) -> None: ...


def test_streams_of_a_notebook_keep_their_order(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has the lines in order, and each stream its own."""
    page: list[tuple[str, str]] = []
    monkeypatch.setattr(sys, "stdout", Cell("out", page))
    monkeypatch.setattr(sys, "stderr", Cell("err", page))
    place.isolated(in_turns)(50)
    assert "".join(text for _, text in page) == "".join(f"out {number}\nerr {number}\n" for number in range(50))
    for name in ("out", "err"):
        own = "".join(text for stream, text in page if stream == name)
        assert own == "".join(f"{name} {number}\n" for number in range(50))


def test_a_redirected_stream_has_its_own_text_alone(place: Place) -> None:
    """Where one stream is redirected, the other's text is not mixed in."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        place.isolated(in_turns)(3)
    assert (out.getvalue(), err.getvalue()) == ("out 0\nout 1\nout 2\n", "err 0\nerr 1\nerr 2\n")


def test_a_command_whose_reader_has_gone_ends_quietly(place: Place, tmp_path: Path) -> None:
    """`atoll run FILE | head` prints no traceback, and its call ends."""
    path = tmp_path / "program.py"
    path.write_text("from atoll import isolated\n@isolated\ndef count():\n    while True: print(1)\n")
    command = [sys.executable, "-c", "from atoll.cli.main import main; main()", "run", str(path)]
    environment = {**os.environ, **place.variables}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"1\n"
        run.stdout.close()
        assert b"Traceback" not in run.stderr.read()
        assert run.wait(PATIENCE_SECONDS) == 1


@pytest.mark.parametrize(
    "change",
    [
        'sys.stdout.reconfigure(encoding="utf-8")',
        'sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", write_through=True)',
        'sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8", write_through=True)',
    ],
    ids=["settings", "wrapped", "detached"],
)
def test_a_stream_that_has_printed_can_be_arranged_anew(
    place: Place, capfd: pytest.CaptureFixture[str], change: str
) -> None:
    """Programs set the encoding of their output in all of these ways; the next call prints as well."""

    def run(change: str) -> None:
        print("before")
        exec(change, {"sys": sys, "io": io})
        print("after")

    run_there = place.isolated(run)
    run_there(change)
    run_there("")
    assert capfd.readouterr().out == "before\nafter\n" * 2
