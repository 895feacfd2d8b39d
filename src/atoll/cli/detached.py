"""Detached calls on the command line: `atoll attach`, `atoll calls result` and `forget`, and the words of `run --detach`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from atoll import errors
from atoll.cli.terminal import echo, echo_exception, echo_lines, write_output, write_result
from atoll.sdk.detached import answers
from atoll.sdk.detached.batch import BatchHandle
from atoll.sdk.detached.handle import CallHandle
from atoll.sdk.display.output import ReaderGone

SHORT = 8
"""Characters of an id that are shown where it is to be typed."""


def say_spawned(handle: CallHandle[Any]) -> None:
    """Print the id of a call, and for people the ways to find it again."""
    echo(handle.id, flush=True)
    short = handle.id[:SHORT]
    echo(
        f"the call goes on without this terminal: `atoll attach {short}` follows it, `atoll cancel {short}` ends it,",
        error=True,
    )
    echo(
        f"`atoll calls result {short}` has its result, as has `CallHandle.from_id({handle.id!r})` in Python", error=True
    )


def attach(call: str, /, *, raw: Annotated[bool, cyclopts.Parameter(negative="")] = False) -> int:
    """Follow a detached call: print its output from the beginning, then its result, as `atoll run` does.

    Of a batch it shows a bar until its calls have ended, then how they ended. Ctrl-C leaves the call running.

    Parameters
    ----------
    call: str
        The id of a call or a batch, or its beginning.
    raw: bool
        Print the function's own bytes to a terminal too, whatever they do there.
    """
    handle = _call_or_batch(call)
    if not isinstance(handle, CallHandle):
        from atoll.cli import batches  # for few calls

        return batches.follow(*handle)
    try:
        for text in handle.logs(follow=True):
            write_output(text, raw=raw)
        return _print_result(handle)
    except KeyboardInterrupt:
        echo(
            f"the call goes on: `atoll attach {handle.id[:SHORT]}` follows it again, `atoll cancel` ends it", error=True
        )
        raise


def _call_or_batch(start: str) -> CallHandle[Any] | tuple[BatchHandle[Any], str]:
    """Return the call of this id or beginning, or else the batch with its function.

    Raises:
        CallUnknown: there is none, or more than one.
    """
    try:
        return CallHandle.from_id(start)
    except errors.CallUnknown:
        from atoll.cli import batches  # for few calls

        found = batches.find(start)
        if found is None:
            raise
        return found


def result(
    call: str,
    /,
    *,
    output: Annotated[Path | None, cyclopts.Parameter(alias="-o")] = None,
    wait: Annotated[bool, cyclopts.Parameter(negative="")] = False,
) -> int:
    """Print the result of a detached call, or write it to a file; a failed call's exception is printed.

    Parameters
    ----------
    call: str
        The call's id, or its beginning.
    output: Path
        Write the result to this file, as a pickle.
    wait: bool
        Wait for the call's end.
    """
    handle = _call_or_batch(call)
    if not isinstance(handle, CallHandle):
        batch, function = handle
        echo_lines(
            f"error: `{call}` is a batch of `{function}`, and has a result for each call\nhint: take them in Python: "
            f"`BatchHandle.from_id({batch.id!r}).results()`",
            error=True,
        )
        return 1
    status = handle.status()
    if status.state != "finished" and not wait:
        echo_lines(
            f"error: call `{handle.id[:SHORT]}` has not ended: {status}\nhint: wait with `--wait`, or follow it with "
            f"`atoll attach {handle.id[:SHORT]}`",
            error=True,
        )
        return 1
    return _print_result(handle, output)


def _print_result(handle: CallHandle[Any], file: Path | None = None) -> int:
    """Print or write a call's result, or print its exception; return the exit status."""
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.append(
            directory
        )  # classes of the program's modules; behind everything else, as files here may be anyone's
    try:
        value = handle.result()
    except (errors.AtollError, ReaderGone):
        raise
    except Exception as error:
        echo_exception(error)
        return 1
    if file is not None:
        _write(file, answers.as_pickle(value))
        echo(f"wrote `{file}`: read it with `pickle.load`", error=True)
    elif value is not None:
        write_result(value)
    return 0


def _write(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.absolute().parent, prefix=".atoll-", delete=False) as file:
        try:
            file.write(data)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def forget(call: str, /, *, batch: Annotated[bool, cyclopts.Parameter(negative="")] = False) -> int:
    """Remove a detached call that has ended, with its output and result, before it would expire.

    Parameters
    ----------
    call: str
        The call's id, or its beginning.
    batch: bool
        CALL is the id of a batch, and not that of a call: all calls of it that have ended.
    """
    handle = (BatchHandle.from_id(call), "") if batch else _call_or_batch(call)
    if not isinstance(handle, CallHandle):
        echo(f"removed {handle[0].forget()} calls")
        return 0
    if handle.status().state != "finished":
        echo_lines(
            f"error: call `{handle.id[:SHORT]}` has not ended\nhint: end it with `atoll cancel {handle.id[:SHORT]}`",
            error=True,
        )
        return 1
    handle.forget()
    echo(f"removed call {handle.id[:SHORT]}")
    return 0
