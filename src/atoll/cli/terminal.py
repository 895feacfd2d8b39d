"""Everything that the command line prints, and the only place that does.

`echo`, `echo_lines` and `echo_name` escape all that a name or a message from elsewhere could do to a terminal
(`terminal_text`). `write_output` and `write_content` are for a function's own output and files, and say in their names
that they are raw, or when. A test holds that no other module of the folder prints.
"""

from __future__ import annotations

import sys
from typing import Any

from atoll.sdk.display.output import ReaderGone
from atoll.terminal_text import harmless, lines, printable


def echo(line: str = "", *, error: bool = False, flush: bool = False) -> None:
    """Print one line, on standard error if `error`; a newline in it is shown as an escape.

    Args:
        flush: pass it on at once, also to a pipe.
    """
    _print(printable(line), error=error, flush=flush)


def echo_lines(text: str, *, error: bool = False) -> None:
    """Print a text of several lines."""
    _print(lines(text), error=error)


def echo_exception(error: BaseException) -> None:
    """Print the traceback of a function's exception on standard error, without Atoll's own frames."""
    import traceback  # for failures alone

    from atoll.sdk.futures import hide_frames  # as above

    hide_frames(error)
    echo_lines("".join(traceback.format_exception(error)).rstrip("\n"), error=True)


def echo_name(before: str, name: str) -> None:
    """Print a line that ends in a name of a file: escaped on a terminal; its own bytes elsewhere, for programs."""
    text = printable(name) if sys.stdout.isatty() else name
    write_raw(f"{before}{text}\n".encode("utf-8", "surrogateescape"))


def echo_json(text: str, *, flush: bool = False) -> None:
    """Print JSON, whose encoder has escaped the control characters."""
    _print(text.replace("\x7f", "\\u007f"), flush=flush)  # DEL, the one that it leaves


def ask(question: str) -> str:
    """Ask on standard error and return the line that is typed; empty at the end of the input."""
    if sys.stderr is None or sys.stdin is None:
        return ""
    sys.stderr.write(printable(question))
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    return answer


def write_output(text: str, *, raw: bool) -> None:
    """Print a function's own output: raw to a pipe or a file, and to a terminal if `raw`; else what is harmless there."""
    if not raw and sys.stdout.isatty():
        text = harmless(text)
    sys.stdout.flush()
    write_raw(text.encode("utf-8", "backslashreplace"))
    sys.stdout.flush()


def write_raw(content: bytes | memoryview) -> None:
    """Write bytes to standard output as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content)


def write_result(value: Any) -> None:
    """Print a function's result raw, as the `print` of a program that calls it would."""
    try:
        print(value, flush=True)
    except BrokenPipeError as error:
        raise ReaderGone(*error.args) from None


def _print(text: str, *, error: bool = False, flush: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=flush)
    except UnicodeEncodeError:  # a terminal that does not know all of Unicode
        print(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding), file=stream, flush=flush)
