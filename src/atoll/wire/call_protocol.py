"""The client's side of the calls of one lease: a state machine without I/O, driven by a lease or a relay.

Theory of operation. Each method takes an event (a call to run, a message of the worker, the end of the stream) and
returns frames to send or a step to take. The messages of a call, in their order:

    terminal             ->     ahead of the first call of the lease on a terminal, with its descriptor
    sources, setup, call ->     a fresh worker has neither, any other says so by `need`
    texts ->                    ahead of the first call of the lease that has them
                         <- need        of `function`, `sources` or `setup`: sent at once, with the call again
                         <- name        of the program's `module`, which code asks for while it runs
    named                ->             its value, or why there is none
                         <- yield ...   the items of a generator; `stop` -> closes the generator
                         <- result | error
    revoked and exiting take the place of an answer. The lease is over then; a revoked call has not started.

A function's bytes travel once. Both ends keep the last `KEPT_FUNCTIONS` that came, by their digests, in the same order
of use; a later call names the digest and leaves the bytes out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from atoll import errors
from atoll.wire.frames import Header, Message

MOST_NEEDS = 4
"""Requests of a worker for parts of one call: one for each kind, and one more."""
MOST_QUESTIONS = 100_000
"""Names that the code of one call may ask for."""
KEPT_FUNCTIONS = 16
"""Functions that a worker keeps by their digests."""

Frame = tuple[Header, Sequence[Any]]
Step = Literal["wait", "send", "item", "answer", "revoked", "exited", "broken"]
"""Reaction to a message: wait for the next one; send the returned frames; pass an item or the answer on; run the call
under another lease; fail, because the function ended its worker or the worker breaks the protocol."""

_STEPS: dict[Any, Step] = {
    "result": "answer",
    "error": "answer",
    "yield": "item",
    "need": "send",
    "name": "send",
    "revoked": "revoked",
    "exiting": "exited",
}
_NO_FRAMES: tuple[Frame, ...] = ()
_json = json.JSONEncoder(separators=(",", ":")).encode
_quote = json.encoder.encode_basestring_ascii


class NamesValue(Protocol):
    """The names of the program that a worker may ask for."""

    def answer(self, question: dict[str, Any]) -> Frame:
        """Return the rest of the `named` message."""


class TerminalValue(Protocol):
    """The caller's terminal."""

    @property
    def variables(self) -> tuple[tuple[str, str], ...]: ...


class CallValue(Protocol):
    """The fields of `model.specs.Call` that travel."""

    @property
    def id(self) -> str: ...
    @property
    def function(self) -> bytes: ...
    @property
    def function_digest(self) -> str: ...
    @property
    def arguments(self) -> bytes: ...
    @property
    def buffers(self) -> tuple[Any, ...]: ...
    @property
    def serializer(self) -> str: ...
    @property
    def reusable(self) -> bool: ...
    @property
    def sources(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def at(self) -> float: ...
    @property
    def timeout_seconds(self) -> float: ...
    @property
    def stream(self) -> bool: ...
    @property
    def setup(self) -> bytes: ...
    @property
    def setup_digest(self) -> str: ...
    @property
    def results(self) -> str: ...
    @property
    def streams(self) -> str: ...
    @property
    def texts(self) -> bytes: ...
    @property
    def texts_digest(self) -> str: ...
    @property
    def names(self) -> NamesValue | None: ...
    @property
    def terminal(self) -> TerminalValue | None: ...


class BundleValue(Protocol):
    """The project's modules of a call."""

    def message(self) -> Frame:
        """Return the `sources` message."""


class Revoked(Exception):
    """The worker gave the lease up before it started the call."""


class CallProtocol:
    """The calls of one lease, one after the other.

    Args:
        epoch: the lease's number, part of each call.
        fresh: the worker was forked for this lease and has neither sources nor setup.
    """

    def __init__(self, epoch: int, *, fresh: bool) -> None:
        self.call: Any = None
        """The call that is answered next."""
        self._epoch = epoch
        self._fresh = fresh
        self._bundle: BundleValue | None = None
        self._keep_alive_seconds = 0.0
        self._parent = ""
        self._needs = 0
        self._questions = 0
        self._kept: dict[str, None] = {}
        self._texts: dict[str, None] = {}
        self._like: tuple[Any, ...] = ()
        self._fields = ""

    def start(
        self, call: CallValue, keep_alive_seconds: float, bundle: BundleValue | None = None, parent: str = ""
    ) -> Sequence[Frame]:
        """Begin a call; return the frames to send."""
        self.call, self._bundle = call, bundle
        self._keep_alive_seconds, self._parent = keep_alive_seconds, parent
        self._needs = self._questions = 0
        texts = _NO_FRAMES
        if call.texts_digest and call.texts_digest not in self._texts:
            texts = (({"type": "texts"}, [call.texts]),)
            self._texts[call.texts_digest] = None
            if len(self._texts) > KEPT_FUNCTIONS:
                del self._texts[next(iter(self._texts))]
        if not self._fresh:
            return (*texts, self._call_frame(call)) if texts else (self._call_frame(call),)
        self._fresh = False
        return (*self._sources(), *texts, *self._setup(), self._call_frame(call))

    def start_more(self, calls: Sequence[CallValue]) -> Sequence[Frame]:
        """Begin calls behind the running one, with its keep-alive, sources, texts and setup; return the frames to send."""
        return [self._call_frame(call) for call in calls]

    def attend(self, call: CallValue) -> None:
        """Set the one of the calls sent that is answered next."""
        self.call = call
        self._questions = 0

    def receive(self, message: Message) -> tuple[Step, Sequence[Frame]]:
        """Take a message of the worker; return the step to take, and the frames to send for `send`."""
        step = _STEPS.get(message.type, "wait")
        if step != "send":
            return step, _NO_FRAMES
        if message.type == "name":
            return self._answer(message.header)
        self._needs += 1
        if self._needs > MOST_NEEDS:
            return "broken", _NO_FRAMES
        if message.header.get("setup"):
            return step, (*self._setup(), self._call_frame(self.call))
        if message.header.get("function"):
            self._kept.clear()
            return step, (self._call_frame(self.call),)
        return step, (*self._sources(), self._call_frame(self.call))

    def _answer(self, question: Header) -> tuple[Step, Sequence[Frame]]:
        """Answer a question for a name; a worker that is not trusted has no reason to ask."""
        names: NamesValue | None = self.call.names
        self._questions += 1
        if names is None or self._questions > MOST_QUESTIONS:
            return "broken", _NO_FRAMES
        header, buffers = names.answer(question)
        return "send", (({**header, "type": "named", "number": question.get("number")}, buffers),)

    def stop(self) -> Frame:
        """Return the frame that closes the generator of the running call."""
        return {"type": "stop", "call": self.call.id}, ()

    def _sources(self) -> Sequence[Frame]:
        return _NO_FRAMES if self._bundle is None else (self._bundle.message(),)

    def _setup(self) -> Sequence[Frame]:
        call = self.call
        return (({"type": "setup", "digest": call.setup_digest}, [call.setup]),) if call.setup_digest else _NO_FRAMES

    def _call_frame(self, call: CallValue) -> Frame:
        like = (
            call.function_digest,
            call.sources,
            call.name,
            call.reusable,
            self._keep_alive_seconds,
            self._parent,
            call.timeout_seconds,
            call.setup_digest,
            call.stream,
            call.results,
            call.streams,
            call.terminal,
            call.serializer,
        )
        if like != self._like:  # the encoder costs more than the rest of a warm call's frame
            self._like, self._fields = like, _json(self._header(call))[:-1]
        header = f'{self._fields},"call":{_quote(call.id)},"at":{call.at!r}}}'.encode()
        digest, function = call.function_digest, call.function
        if digest:
            kept = self._kept
            if digest in kept:
                function = b""
                if len(kept) > 1:
                    del kept[digest]  # the worker orders its functions by their last use too
                    kept[digest] = None
            else:
                kept[digest] = None
                if len(kept) > KEPT_FUNCTIONS:
                    del kept[next(iter(kept))]
        return header, [function, call.arguments, *call.buffers]

    def _header(self, call: CallValue) -> dict[str, Any]:
        """Return the fields that stay from call to call; an absent field is empty."""
        header: dict[str, Any] = {
            "type": "call",
            "epoch": self._epoch,
            "serializer": call.serializer,
            "keep_alive_seconds": self._keep_alive_seconds,
            "name": call.name,
        }
        optional = {
            "function": call.function_digest,
            "reusable": call.reusable,
            "sources": call.sources,
            "parent": self._parent,
            "timeout_seconds": call.timeout_seconds,
            "setup": call.setup_digest,
            "stream": call.stream,
            "results": "" if call.results == "pickle" else call.results,
            "streams": call.streams if call.terminal is None else "terminal",
            "terminal": None if call.terminal is None else dict(call.terminal.variables),
        }
        header.update((name, value) for name, value in optional.items() if value)
        return header


class KeptFunctions:
    """The worker's end of the digests: functions' bytes, the last `KEPT_FUNCTIONS` that were used."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def find(self, digest: str, data: Any) -> bytes | None:
        """Return the bytes of a call's function, new or kept; None for a digest whose bytes have not come."""
        if not digest:
            return bytes(data)
        kept = self._kept
        found = bytes(data) if len(data) else kept.get(digest)
        if found is None:
            return None
        if len(data) or len(kept) > 1:
            kept.pop(digest, None)
            kept[digest] = found
            if len(kept) > KEPT_FUNCTIONS:
                del kept[next(iter(kept))]
        return found


# --- the end of a lease ---------------------------------------------------------------------------------------------


def exited(call: CallValue, message: Message, last_output: str) -> errors.WorkerDied:
    """Return the error of a call whose function ended its worker."""
    status = message.header.get("status")
    return errors.WorkerDied(
        f"`{call.name}` ended its worker with `sys.exit({status})`",
        hint="return a value or raise an exception instead",
        exit_status=status,
        last_output=last_output,
    )


def broken(call: CallValue) -> errors.ProtocolMismatch:
    """Return the error of a call whose worker asks for the same part again and again."""
    return errors.ProtocolMismatch(
        f"the worker of `{call.name}` asks for the same again and again",
        hint="code in the worker has disturbed its channel",
    )


def timed_out(call: CallValue) -> errors.CallTimeout:
    """Return the error of a call that ran longer than its timeout."""
    seconds = call.timeout_seconds
    return errors.CallTimeout(
        f"`{call.name}` took longer than its timeout of {seconds:g} s, and was ended",
        hint="raise `timeout`, or leave it out for calls without an end",
        timeout_seconds=seconds,
    )


def channel_closed(call: CallValue, last_output: str) -> errors.WorkerDied:
    """Return the error of a call whose worker lives and has closed its channel."""
    return errors.WorkerDied(
        f"the worker of `{call.name}` closed its channel to the caller, and was ended",
        hint="the function, or a library it uses, closes descriptors that it has not opened: let it keep them",
        last_output=last_output,
    )


def ended(call: CallValue, data: dict[str, Any] | None, last_output: str, *, killed_here: bool) -> errors.AtollError:
    """Return the error of a call that runs when its lease ends.

    Args:
        data: the error in the daemon's `ended` message; None where the worker gave the lease up.
        killed_here: the worker was killed for the end of its channel.

    Raises:
        Revoked: the call has not started.
    """
    if data is None:
        raise Revoked
    error = errors.from_data(data)
    if isinstance(error, errors.CallTimeout):
        return timed_out(call)
    if killed_here and isinstance(error, errors.WorkerDied) and error.signal == 9:
        return channel_closed(call, last_output)
    if isinstance(error, errors.WorkerDied):
        message = error.message.replace("the worker", f"the worker of `{call.name}`", 1)
        return type(error)(message, hint=error.hint, **{**error.details, "last_output": last_output})
    return error
