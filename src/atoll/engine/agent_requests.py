"""Questions to the agents of sandboxes with running calls: stacks of a worker, and commands beside it.

An agent's answers are claims. They concern its own sandbox alone, are bounded, and go to whoever asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from atoll import errors
from atoll.engine.contract import RunningCall, Started
from atoll.engine.limiting import Limiting
from atoll.engine.pool_state import PoolState, PoolWorker
from atoll.node.capacity import Machine

ANSWER_SECONDS = 10.0
MOST_TEXT = 250_000
MOST_WORDS = 1000
MOST_CHARACTERS = 100_000
"""Words of a command, and their characters together."""


class AgentRequests:
    """Questions that wait for their answers.

    Args:
        state: workers that live now.
        tell: sends to a sandbox's agent.
        limiting: puts a command under the limit of its worker.
    """

    def __init__(
        self,
        machine: Machine,
        state: PoolState,
        tell: Callable[[str, dict[str, Any], Sequence[int]], None],
        limiting: Limiting,
    ) -> None:
        self._state = state
        self._machine = machine
        self._tell = tell
        self._limiting = limiting
        self._count = 0
        self._waiting: dict[int, tuple[str, asyncio.Queue[dict[str, Any]]]] = {}

    def _worker_of(self, call: RunningCall) -> PoolWorker:
        worker = self._state.workers.get(call.worker)
        if worker is None or worker.lease is not call.lease:
            raise errors.ResourcesUnavailable(f"call `{call.call}` is over", hint="see `atoll calls list`")
        return worker

    async def stacks(self, call: RunningCall) -> str:
        """See `contract.Inside.stacks`."""
        worker = self._worker_of(call)
        with self._asking(worker) as (number, answers):
            self._tell(worker.sandbox, {"type": "stacks", "worker": worker.id, "number": number}, ())
            text = (await self._answer(answers)).get("text")
            return text[:MOST_TEXT] if isinstance(text, str) else ""

    async def execute(
        self,
        call: RunningCall,
        command: Sequence[str],
        descriptors: Sequence[int],
        *,
        terminal: bool,
        on_start: Started,
    ) -> int:
        """See `contract.Inside.execute`."""
        worker = self._worker_of(call)
        message = {
            "type": "exec",
            "worker": worker.id,
            "command": list(command),
            "terminal": terminal,
            "env": {**worker.key.variables, **self._machine.gpus.variables(worker.key.sandbox.gpus)},
            "processes": self._machine.process_wall(worker.allotment),
            "umask": worker.key.umask,
        }
        with self._asking(worker) as (number, answers):
            self._tell(worker.sandbox, {**message, "number": number}, descriptors)
            try:
                pid = (await self._answer(answers)).get("pid")
                await self._limit(worker, pid if type(pid) is int else 0)
                self._tell(worker.sandbox, {"type": "begin", "number": number}, ())
                on_start()
                status = _checked(await answers.get()).get("status")
            except asyncio.CancelledError:  # the client is gone
                self._tell(worker.sandbox, {"type": "leave", "number": number}, ())
                raise
            return status if type(status) is int and 0 <= status < 256 else 1

    async def _limit(self, worker: PoolWorker, pid: int) -> None:
        """Put a command under its worker's limit, before it begins."""
        if worker.limit is None:
            await self._limiting.begin(worker)
        limit = worker.limit
        if limit is not None and (found := _on_host(worker.agent, pid)):
            with contextlib.suppress(OSError):  # it has ended
                await asyncio.to_thread(limit.add, found)

    @contextlib.contextmanager
    def _asking(self, worker: PoolWorker) -> Any:
        self._count += 1
        number, answers = self._count, asyncio.Queue[dict[str, Any]](2)
        self._waiting[number] = worker.sandbox, answers
        try:
            yield number, answers
        finally:
            del self._waiting[number]

    @staticmethod
    async def _answer(answers: asyncio.Queue[dict[str, Any]]) -> dict[str, Any]:
        try:
            return _checked(await asyncio.wait_for(answers.get(), ANSWER_SECONDS))
        except TimeoutError as error:
            raise errors.ResourcesUnavailable("the sandbox does not answer", hint="try again") from error

    def answered(self, sandbox: str, message: dict[str, Any]) -> None:
        """Take an agent's answer; one that nobody waits for is dropped."""
        number = message.get("number")
        known = self._waiting.get(number) if type(number) is int else None
        if known is not None and known[0] == sandbox and not known[1].full():
            known[1].put_nowait(message)

    def ended(self, sandbox: str) -> None:
        """Tell those who wait for a sandbox that it has ended."""
        for name, answers in self._waiting.values():
            if name == sandbox:
                while not answers.empty():
                    answers.get_nowait()
                answers.put_nowait({"error": "the sandbox has ended"})


def check_command(command: Any) -> list[str]:
    """Return the words of a command.

    Raises:
        ValueError: it is no list of texts, or too long.
    """
    if not isinstance(command, list) or not all(isinstance(word, str) and "\0" not in word for word in command):
        raise ValueError("`command` must be a list of texts")
    if len(command) > MOST_WORDS or sum(map(len, command)) > MOST_CHARACTERS:
        raise ValueError(f"`command` may have {MOST_WORDS} words with {MOST_CHARACTERS} characters")
    return command


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise errors.ResourcesUnavailable(
            f"the sandbox cannot do that: {str(answer['error'])[:200]}", hint="`atoll calls list --running` shows calls"
        )
    return answer


def _on_host(parent: int, inner: int) -> int:
    """Return the number on the host of a process that an agent has named; 0 if it is no child of the agent.

    Args:
        parent: the parent of a worker: the agent, or a preloader below it.
        inner: the number in the sandbox.
    """
    for agent in (parent, _field(parent, "PPid")):
        with contextlib.suppress(OSError, ValueError):
            for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
                if _field(int(child), "NSpid") == inner:
                    return int(child)
    return 0


def _field(pid: int, name: str) -> int:
    """Return the last number of a line of a process's status; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[-1])
    return 0
