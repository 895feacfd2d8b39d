"""Text of functions, packages and peers does nothing to a terminal that shows it: names, ids, errors, output, files."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import json
import logging
import os
import re
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll import errors, isolated
from atoll.cli.main import run
from atoll.cli.terminal import echo
from atoll.daemon.main import _LogFormat
from atoll.host.local import LocalHost
from atoll.model.records import CallRecord
from atoll.node import stderr_log
from atoll.payload import exceptions_dump, untrusted
from atoll.sdk.display import words
from atoll.sdk.display.output import CallerStreams
from atoll.storage.protocol.progress import ProgressLine
from atoll.terminal_text import RESET, cell, harmless, lines, printable

from ..conftest import Home
from ..waiting import until

TITLE, CLIPBOARD, CLEAR = "\x1b]0;PWNED\x07", "\x1b]52;c;cm0gLXJm\x07", "\x1b[2J"
EVIL = f"x{TITLE}{CLIPBOARD}{CLEAR}\x9b2J\x7f\x08\r\u202e\u2066\u2028\udc80\nFORGED  row"
"""Escape sequences, C1, DEL, backspace, carriage return, bidi marks, separators, a lone surrogate, and a row."""
SOURCE = Path(atoll.__file__).parent


# --- a terminal -------------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo terminal that is standard output and standard error of a command."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.stream = open(slave, "w", encoding="utf-8", newline="")
        self._pieces = list[bytes]()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self._master, 1 << 16):
                self._pieces.append(data)

    def close(self) -> str:
        """Return everything that was shown."""
        self.stream.close()
        self._reader.join()
        os.close(self._master)
        return b"".join(self._pieces).decode("utf-8", "surrogateescape").replace("\r\n", "\n")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(*arguments: str) -> str:
    """Return what a command shows on a terminal."""
    terminal = Terminal()
    try:
        with contextlib.redirect_stdout(terminal.stream), contextlib.redirect_stderr(terminal.stream):
            run(list(arguments))
    finally:
        text = terminal.close()
    return text


def piped(*arguments: str) -> bytes:
    """Return the bytes that a command writes to a pipe."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(stream):
        assert run(list(arguments)) == 0
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


def is_clean(text: str) -> bool:
    """Return whether a terminal only prints: lines, tabs, and the colours of tables."""
    rest = re.sub(r"\x1b\[[0-9;]*m|[\n\t]", "", text)
    return rest.isprintable() and not any(line.startswith("FORGED") for line in text.splitlines())


# --- the function for it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", "train"),
        ("naïve 漢字 🙂 e\u0301", "naïve 漢字 🙂 e\u0301"),
        (TITLE, r"\x1b]0;PWNED\x07"),
        ("a\nb\tc\rd\x00", r"a\nb\tc\rd\x00"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("\u202eevil\u2066\u2028\u2029\u200b", r"\u202eevil\u2066\u2028\u2029\u200b"),
        ("\udc80\ud800", r"\x80\U0000d800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_text_for_one_line(text: str, expected: str) -> None:
    """Printable Unicode stays, everything else is shown as an escape."""
    assert printable(text) == expected
    assert printable(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 %\r100 %\n\tdone", "50 %\r100 %\n\tdone"),
        ("\x1b[1;31mred\x1b[0m", f"\x1b[1;31mred\x1b[0m{RESET}"),
        ("\x1b[m", f"\x1b[m{RESET}"),
        (CLEAR + TITLE, r"\x1b[2J\x1b]0;PWNED\x07"),
        ("\x1b[>4;2m\x1b[?1m\x1b[38:5:1m", r"\x1b[>4;2m\x1b[?1m\x1b[38:5:1m"),
        ("\x1b[" + "1;" * 30 + "m", r"\x1b[" + "1;" * 30 + "m"),
        ("\x1b[6n\x1bc\x1b[1A\x0b\x0c\x08", r"\x1b[6n\x1bc\x1b[1A\x0b\x0c\x08"),
    ],
)
def test_text_of_a_functions_output(text: str, expected: str) -> None:
    """Lines, tabs, progress bars and plain colours stay; movement, questions, titles and modes do not."""
    assert harmless(text) == expected


@given(st.text(st.characters(exclude_categories=()) | st.sampled_from("\x1b[]0;m\n\r\t\x07")))
def test_no_text_gets_through(text: str) -> None:
    """Whatever a text holds, its forms are printable; a cell is bounded."""
    assert printable(text).isprintable()
    assert lines(text).replace("\n", "").replace("\t", "").isprintable()
    assert lines(text).count("\n") == text.count("\n")
    assert re.sub(r"\x1b\[[0-9;]*m|[\n\t\r]", "", harmless(text)).isprintable()
    assert cell(text).isprintable()
    assert len(cell("a" * len(text), 10)) <= 10


# --- commands with hostile records ------------------------------------------------------------------------------------

RECORD = {
    **CallRecord(
        call=f"c{EVIL}", function=f"f{EVIL}", user=f"u{EVIL}", parent=f"p{EVIL}", queued_at=1e12, started_at=1e12,
        outcome="error", error=f"E{EVIL}", message=f"m{EVIL}", environment=f"e{EVIL}", sandbox=f"s{EVIL}", worker=EVIL,
    ).to_data(),
    "printed_bytes": 1 << 20,
    "output": f"begin {EVIL}",
}  # fmt: skip
ENVIRONMENT = {
    "key": f"k{EVIL}", "python_version": EVIL, "interpreter": EVIL, "size_bytes": 1, "created": 0.0, "last_used": 0.0,
    "build_seconds": 1.0, "in_use": True, "superseded": True, "requirements": [EVIL, f"numpy{EVIL}"],
}  # fmt: skip
ANY_ROW = {
    **dict.fromkeys(("id", "environment", "network", "results", "user", "sandbox", "function", "state"), EVIL),
    **dict.fromkeys(("pid", "started_at", "workers", "calls", "memory_bytes"), 1),
}
UNFINISHED = {
    **dict.fromkeys(("call", "function", "state", "worker", "sandbox", "environment", "detail", "machine_type"), EVIL),
    **dict.fromkeys(("since", "queued_at", "memory_bytes", "peak_bytes", "cpu_seconds", "position"), 1),
    "state": "running",
    "parent": "",
    "detached": False,
    "reason": EVIL,
}
ANSWERS: dict[str, Any] = {
    "calls.list": {"calls": [RECORD, RECORD]},
    "calls.show": {"calls": [RECORD], "children": [RECORD]},
    "calls.output": {"calls": [RECORD]},
    "environments.list": {"environments": [ENVIRONMENT]},
    "environments.show": {
        "environment": ENVIRONMENT,
        "lock": f"numpy==1 {EVIL}",
        "log": EVIL,
        "preload": {"modules": [EVIL], "refused": {EVIL: EVIL}},
        "preload_data": {"modules": [EVIL], "refused": {EVIL: EVIL}},
    },
    "environments.build": {"environment": ENVIRONMENT},
    "environments.upgrade": {"environment": ENVIRONMENT, "changed": True},
    "environments.lock": {"lock": f"numpy==1 {EVIL}\n".replace("\nFORGED", "")},
    "environments.prune": {"removed": [ENVIRONMENT], "in_use": [ENVIRONMENT]},
    "volume.restore": {"kept": EVIL},
    "status": {
        "daemon": {
            "pid": 1, "version": EVIL, "started_at": 0.0, "waiting": 0, "home": EVIL,
            "settings": {"error": EVIL, "pending": [EVIL]},
        },
        "capacity": {
            "machine": {"cpus": 1.0, "memory_bytes": 1, "gpus": [{"name": EVIL}]},
            "free": {"cpus": 1.0, "memory_bytes": 1, "gpus": 1},
            "types": [{"name": EVIL, "cpus": 1.0, "memory_bytes": 1, "gpus": 0, "fits_now": 1, "full": True, "largest": 1}],
        },
        "calls": [UNFINISHED],
        "sandboxes": [ANY_ROW],
        "workers": [ANY_ROW],
    },
    "calls.running": {"calls": [UNFINISHED]},
}  # fmt: skip
COMMANDS = [
    ["calls", "list"],
    ["calls", "show", "c"],
    ["logs", "c"],
    ["status"],
    ["env", "list"],
    ["env", "show", "k"],
    ["env", "build", "-r", "numpy"],
    ["env", "upgrade", "-r", "numpy"],
    ["env", "lock", "-r", "numpy"],
    ["env", "prune"],
    ["data", "restore", "name"],
    ["version"],
]


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the daemon's answers and its progress be hostile, in each text."""

    def request(self: LocalHost, name: str, arguments: Any, on_progress: Any = None, **_: Any) -> Any:
        if on_progress is not None:
            on_progress(f"Installing {EVIL}")
        return json.loads(json.dumps(ANSWERS[name]))

    monkeypatch.setattr(LocalHost, "request", request)
    monkeypatch.setattr(LocalHost, "request_running", request)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_show_hostile_texts_as_escapes(command: list[str]) -> None:
    """No field of a record, a status or an environment acts on the terminal or makes a row of its own."""
    text = shown(*command)
    assert "PWNED" in text
    if command[0] == "logs":  # the function's own output has lines of its own
        text = text.replace("\r", "").replace("\nFORGED  row\n--", "\n--")
    assert is_clean(text), repr(text)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_write_rows_to_a_pipe_that_nobody_can_forge(command: list[str]) -> None:
    """Programs that read tables line by line get one line for each record."""
    text = piped(*command).decode("utf-8", "surrogateescape")
    if command[0] == "logs":
        text = text.replace(ascii_free(RECORD["output"]), "")
    assert is_clean(text.replace("\r", "")), repr(text)


def ascii_free(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["calls", "list", "--json"], [UNFINISHED, *ANSWERS["calls.list"]["calls"]]),
        (["calls", "show", "c", "--json"], ANSWERS["calls.show"]),
        (["logs", "c", "--json"], ANSWERS["calls.output"]),
        (["status", "--json"], ANSWERS["status"]),
        (["env", "show", "k", "--json"], ANSWERS["environments.show"]),
    ],
)
def test_json_has_the_exact_text(command: list[str], answer: Any) -> None:
    """JSON is valid, holds each text as it came, and is clean on a terminal too."""
    text = shown(*command)
    for printed in (json.loads(piped(*command)), json.loads(text)):
        if isinstance(answer, list):  # rows have further fields
            assert [
                {name: row.get(name) for name in given} for row, given in zip(printed, answer, strict=True)
            ] == answer
        else:
            assert printed == answer
    assert is_clean(text)


@pytest.mark.usefixtures("hostile")
def test_output_is_raw_in_a_pipe_and_on_request() -> None:
    """`logs CALL` gives a program the function's own bytes, and a terminal with `--raw` alone."""
    raw = ascii_free(RECORD["output"])
    assert raw.encode() in piped("logs", "c")
    assert TITLE in shown("logs", "c", "--raw")
    assert TITLE not in shown("logs", "c")


def test_a_long_name_leaves_room_for_the_other_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of a call's id that commands take is shown whole beside a name of 128 characters."""
    monkeypatch.setenv("COLUMNS", "160")
    record = {**RECORD, "call": "0123456789ab", "function": "f" * 128, "error": "E" * 200}
    monkeypatch.setattr(LocalHost, "request", lambda *_: {"calls": [record]})
    monkeypatch.setattr(LocalHost, "request_running", lambda *_: None)
    (line,) = shown("calls", "list").splitlines()[1:]
    assert line.startswith("01234567  fff")
    assert len(line) <= 160


# --- the way through the daemon ---------------------------------------------------------------------------------------


def claim(texts: list[str], last: list[str]) -> None:
    """Lie about this worker's calls: ids, names, parents and errors of the worker's choice."""
    import time

    from atoll.agent import usage
    from atoll.wire import nested

    now = time.time()
    texts[0] = f"{texts[0]}-{nested.call.partition('-')[2]}"  # the daemon drops records of other programs' calls
    begin = usage._BEGIN.pack(1e12, now, 0.0, 0, *(text.encode("utf-8", "replace") for text in texts))
    slots = begin + usage._END.pack(0.1, 0.1, 1, 1)
    assert nested._control is not None
    nested._control[1].send({"type": "records", "slots": slots.hex(), "last": last})


def hostile_function() -> None:
    class Bad(Exception):
        pass

    Bad.__name__ = Bad.__qualname__ = f"N{TITLE}"
    print(f"out {CLIPBOARD}{TITLE}")
    os.makedirs("/data/esc", exist_ok=True)
    Path(f"/data/esc/{TITLE}\nFORGED").write_text("x")
    raise Bad(f"msg {TITLE}\nFORGED")


@pytest.mark.as_user
def test_a_hostile_function_shows_nothing_but_text(shared_home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, claims, errors and files of a real function are clean in every command that shows them."""
    hostile_function.__name__ = hostile_function.__qualname__ = f"f{TITLE}\nFORGED"

    def recorded() -> list[dict[str, Any]]:
        """Make both calls, and return their records; some are left out where other tests have just made very many."""
        with pytest.raises(Exception, match="msg"):
            isolated(hostile_function)()
        isolated(claim)([f"c{TITLE}", f"n{TITLE}\nFORGED", CLEAR], ["error", f"T{TITLE}\nFORGED", f"m{TITLE}\nFORGED"])
        records = [one for one in json.loads(piped("calls", "list", "--json")) if TITLE in one["function"]]
        return records if {record["function"][0] for record in records} == {"f", "n"} else []

    found = until(recorded)
    capsys.readouterr()
    assert any(record["call"].startswith(f"c{TITLE}-") for record in found)
    commands = [
        ["calls", "list"],
        ["status"],
        ["data", "ls", "esc"],
        ["data", "ls", "-l", "esc"],
        ["data", "du", "esc"],
    ]
    commands += [["data", "cat", "esc"], ["data", "rm", "esc"], ["data", "cat", "esc/*", "missing"]]
    for record in found:
        commands += [["calls", "show", record["call"]], ["logs", record["call"]]]
    for command in commands:
        text = shown(*command)
        assert is_clean(text.replace("  FORGED", "").replace("\nFORGED\n", "\n")), (command, text)


@pytest.mark.as_user
def test_a_function_on_the_command_line(shared_home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`atoll run` shows the function's own output and result as they are, and the text of its exception escaped."""
    monkeypatch.setenv("ATOLL_DISPLAY", "plain")  # the display moves the cursor
    program = tmp_path / "program.py"
    program.write_text(
        "from atoll import isolated\n"
        "@isolated\ndef fails():\n    raise ValueError('text \\x1b]0;PWNED\\x07')\n"
        "@isolated\ndef shows():\n    return 'result \\x1b]0;PWNED\\x07'\n"
    )
    text = shown("run", f"{program}::fails")
    assert r"text \x1b]0;PWNED\x07" in text
    assert is_clean(text)
    assert TITLE in shown("run", f"{program}::shows")


# --- lines of Atoll's own ---------------------------------------------------------------------------------------------


def test_notices_and_progress_are_one_clean_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A notice, a build's step, a progress message and the live line hold texts of packages and peers."""
    CallerStreams().notice(EVIL)
    CallerStreams().progress(EVIL)
    ProgressLine("uploading").say(EVIL)
    written = capsys.readouterr().err
    assert is_clean(written)
    assert written.count("\n") == 3
    waiting = words.Waiting("building", EVIL, 0.0)
    assert words.text([waiting], 5.0, 300).isprintable()


def test_a_terminal_that_does_not_know_unicode_shows_all_records() -> None:
    """A function's name cannot make a listing fail there."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    with contextlib.redirect_stdout(stream):
        echo("naïve 漢")
    assert stream.buffer.getvalue() == b"na\\xefve \\u6f22\n"


def test_errors_of_atoll_are_clean_and_keep_the_exact_message() -> None:
    """The printed form of an error escapes; `message` and `to_data` have the text as it came, newlines stay."""
    error = errors.WorkerDied(f"a {TITLE}\nb", hint=f"c {CLEAR}")
    assert is_clean(str(error))
    assert str(error).splitlines() == ["a \\x1b]0;PWNED\\x07", "b", "hint: c \\x1b[2J"]
    assert error.message == f"a {TITLE}\nb"
    assert errors.from_data(error.to_data()).message == error.message


def test_frames_of_a_hostile_function_are_clean() -> None:
    """The interpreter prints a traceback's file, function and source line as they are."""
    exc = ValueError("x")
    frame = [f"f{EVIL}", 3, f"n{EVIL}", f"\ts{EVIL}", None, None, None]
    header, buffers = exceptions_dump.dumps(exc, plain=True)
    header["exceptions"][0]["frames"] = [frame]
    found = untrusted.loads_exception(header, buffers)
    printed = "".join(traceback.format_exception(found))
    assert "PWNED" in printed
    assert is_clean(printed)


def test_the_log_of_sandboxes_is_clean(tmp_path: Path) -> None:
    """A package's code may print while a sandbox starts; the log's lines stay lines."""
    log = tmp_path / "log"

    async def write() -> None:
        with stderr_log.logged_stderr(log) as descriptor:
            os.write(descriptor, f"naïve\t{EVIL}\n".encode("utf-8", "surrogateescape"))

    with asyncio.Runner() as runner:
        runner.run(write())
        until(lambda: (runner.run(asyncio.sleep(0)), log.exists())[1])
        runner.run(asyncio.sleep(0))
    text = log.read_text("utf-8").removesuffix("\nFORGED  row\n")  # a line of its own, as any
    assert text.startswith("naïve\tx\\x1b]0;")
    assert is_clean(text)


def test_the_daemons_log_has_one_line_for_each_event() -> None:
    """A worker's text cannot forge an event, and shows no escape sequence later."""
    record = logging.LogRecord("atoll", logging.WARNING, __file__, 1, "refused module=%s", (EVIL,), None)
    assert is_clean(_LogFormat("%(levelname)s %(message)s").format(record))


# --- the check of the code --------------------------------------------------------------------------------------------

PRINTING = {
    "cli/terminal.py",
    "cli/tables.py",
    "sdk/display/beside.py",
    "sdk/display/call_lines.py",
    "sdk/display/live_line.py",
    "sdk/display/mode.py",
    "sdk/display/output.py",
    "sdk/data/sync.py",
}
PRINTING |= {"sdk/data/download.py", "storage/protocol/progress.py", "cli/main.py", "cli/programs/shell.py"}
PRINTING |= {"host/remote/patience.py", "cli/columns.py", "cli/calls/top_view.py", "cli/completion_values.py"}
"""Modules that write to a terminal: each escapes (`sdk/data/sync.py` prints a plan's escaped lines; `host/remote/patience.py` prints addresses that were checked; `cli/programs/shell.py` is a
terminal itself; `cli/main.py` opens `/dev/null` for closed streams; `cli/completion_values.py` leaves out what it would have to
escape)."""
OTHERS = {"environments/build/conda_program.py", "sandbox/seccomp.py", "node/selftest.py", "cli/data/peers.py"}
"""Programs of their own, whose output another program reads."""
INSIDE = ("agent/", "payload/")
"""Code inside sandboxes: what it prints is the function's output."""


def writes(tree: ast.AST) -> list[str]:
    """Return the places of a module that print, use rich's console, or take a standard stream."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print"), keywords=keywords):
                files = [word.value for word in keywords if word.arg == "file"]
                if not files or isinstance(files[0], ast.Attribute):  # others are files of their own
                    found.append(f"{node.lineno}: print")
            case ast.Call(func=ast.Attribute(attr="print_exc" | "print_exception" | "print_stack")):
                found.append(f"{node.lineno}: traceback")
            case ast.ImportFrom(module=str(module)) if module.startswith("rich"):
                found.append(f"{node.lineno}: rich")
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"), attr=name):
                if name not in {"isatty", "flush", "fileno", "encoding"}:
                    found.append(f"{node.lineno}: {name}")
    return found


def test_nothing_else_prints() -> None:
    """A module that would print a record's field raw is found: printing has its places, which escape."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = str(path.relative_to(SOURCE))
        if (
            name not in PRINTING | OTHERS
            and not name.startswith(INSIDE)
            and (places := writes(ast.parse(path.read_text("utf-8"))))
        ):
            found[name] = places
    assert found == {}


def test_the_check_finds_what_it_looks_for() -> None:
    """Each kind of writing is seen."""
    code = "print(a)\nsys.stdout.write(a)\nsys.stderr.buffer\ntraceback.print_exc()\nfrom rich.console import Console\n"
    found = {place.split(": ")[1] for place in writes(ast.parse(code))}
    assert found == {"print", "write", "buffer", "traceback", "rich"}
