"""The other machine of a test of a shared file system: a program that performs steps, over its standard streams."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atoll import errors, process, settings
from atoll.model.findings import Finding
from atoll.storage.selftest.peer_checks import examine
from atoll.storage.selftest.peer_steps import Steps

END_SECONDS = 10.0


class Peer:
    """The program on the other machine.

    Args:
        command: starts it, by ssh for example; its streams are a stream of bytes to and from that machine.

    Raises:
        HostUnreachable: it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        try:
            self._program = process.converse(command, env=settings.environment_with({}))
        except OSError as error:
            raise errors.HostUnreachable(
                f"`{command[0]}` cannot be started: {error.strerror}", hint="such as `--peer 'ssh gpu2'`"
            ) from error

    def perform(self, step: str, arguments: dict[str, Any]) -> Any:
        """Have the other machine perform a step.

        Raises:
            OSError: as its file system says; EPIPE when the program has ended.
        """
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._program.stdin.write(json.dumps({**arguments, "step": step}).encode() + b"\n")
            self._program.stdin.flush()
        line = self._program.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            raise OSError(
                errno.EPIPE, f"the other machine has ended, or said `{line.decode(errors='replace')[:200]}`"
            ) from None
        if "error" in answer:
            raise OSError(answer["error"], str(answer.get("text"))[:500])
        return answer["value"]

    def close(self) -> None:
        """End the program."""
        process.end_conversation(self._program, END_SECONDS)


def compare(root: Path, command: Sequence[str]) -> Iterator[Finding]:
    """Try the checks between this machine and another.

    Args:
        root: of the shared file system here.
        command: starts `atoll doctor --data --as-peer` there.

    Raises:
        HostUnreachable: the other machine does not answer.
        StateUnusable: the file system cannot be written here.
    """
    name = f"doctor-{secrets.token_hex(8)}"
    try:
        (root / name).mkdir(mode=0o700)
    except OSError as error:
        raise errors.StateUnusable(
            f"`{root}` cannot be written: {error.strerror}", hint="check that it is mounted"
        ) from error
    here = Steps(root / name)
    try:
        peer = Peer(command)
        try:
            try:
                peer.perform("begin", {"name": name})
            except OSError as error:
                if error.errno == errno.EPIPE:
                    raise
                lost = "the machines share nothing"
                text = f"the other machine does not see a directory that is made here: {error.strerror}"
                yield Finding("same file system", True, False, text, lost, "mount the same one on both")
                return
            yield from examine(here, peer)
        except OSError as error:
            if isinstance(error, errors.AtollError):
                raise
            raise errors.HostUnreachable(
                f"the other machine does not answer: {error.strerror}",
                hint=f"run `{' '.join(command)}` by hand: it must wait for lines",
            ) from error
        finally:
            peer.close()
    finally:
        here.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(root / name, ignore_errors=True)
            os.rmdir(root / name)
