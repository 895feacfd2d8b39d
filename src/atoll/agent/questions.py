"""Questions of a running function to its caller: names of the program that did not travel with it.

Any thread of the function may ask while the call runs. Calls that the caller sent ahead, and `stop`, may have come
before the answer: they stay in the channel until the call has ended. A forked child asks nothing: the channel is its
parent's.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable
from typing import Any

from atoll.payload.program import namespaces
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.frames import FrameError, Message

_NOT_TRUSTED = 'a function with `results="data"` cannot ask its caller for names'


class Questions:
    """Asks over the channel of the call that runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: Channel | None = None
        self._call: Any = ""
        self._refused = ""
        self._number = 0
        self._pid = os.getpid()
        namespaces.ask = self.value
        namespaces.list_names = self.names

    def begin(self, data: Channel, call: Any, plain: bool) -> None:
        """Let the code of a call ask; a caller that does not trust it is not asked."""
        self._call, self._refused, self._data = call, _NOT_TRUSTED if plain else "", data

    def end(self) -> None:
        """Let nobody ask until the next call; a question of another thread is answered first."""
        with self._lock:
            self._data = None

    def value(self, module: str, name: str) -> Any:
        """Return the value that a name of the caller's module has now.

        Raises:
            AttributeError: it has none, or as `Unsendable` it cannot be sent; the message says why.
        """
        try:
            answer = self._ask({"module": module, "name": name})
            if "missing" not in answer.header:
                return namespaces.Unpickler(io.BytesIO(answer.buffers[0]), answer.buffers[1:]).load()
            reason = str(answer.header["missing"])
        except (_Refused, ModuleNotFoundError) as error:
            reason = str(error)
        text = f"module {module!r} has no attribute {name!r}"
        if not reason:
            raise AttributeError(text, name=name)
        raise namespaces.Unsendable(f"{text} here: {reason}", name=name)

    def names(self, module: str) -> Iterable[str]:
        """Return the names of the caller's module; none where nobody can be asked."""
        try:
            names = self._ask({"module": module}).header.get("names")
        except _Refused:
            names = None
        return names if isinstance(names, list) else ()

    def snapshot(self, module: str, known: list[str]) -> Message | None:
        """Return all names of the caller's module but the known ones, with their pickles; None if nobody answers."""
        try:
            return self._ask({"module": module, "snapshot": True, "known": known})
        except _Refused:
            return None

    def _ask(self, question: dict[str, Any]) -> Message:
        if os.getpid() != self._pid:
            raise _Refused("a child process cannot ask the caller for it: use the name in the function before the fork")
        with self._lock:
            data = self._data
            if data is None:
                raise _Refused("no call runs whose caller could be asked")
            if self._refused:
                raise _Refused(self._refused)
            self._number += 1
            try:
                data.send({"type": "name", "call": self._call, "number": self._number, **question})
                while True:
                    answer = data.take("named")
                    if answer is None:
                        data.fill()
                    elif answer.header.get("number") == self._number:  # another one's asker was interrupted
                        return answer
            except (ChannelClosed, FrameError, OSError) as error:
                raise _Refused(f"the caller does not answer: {error}") from None


class _Refused(Exception):
    """There is nobody to ask."""
