"""The worker: one process that serves one call at a time, for one lease at a time.

Theory of operation. A lease brings three descriptors: a data socket to the client, and the write ends of two pipes
that become stdout and stderr. Calls arrive on the data socket; before a call begins, the lease's epoch is written to
a word of memory that the agent shares, and zero after its answer has been sent. By then all that the function
printed is in the pipes.

A lease ends in three ways. The client closes the socket: the worker tells the daemon `idle` and waits for the next
lease. The daemon reclaims it because others wait: between two calls the worker says `revoked` on the data socket, so
that a client whose call crossed that message knows that it has not started, then `idle`. `keep_alive` passes without
a call: the worker says `revoked` and ends. A lease that is reclaimed before its first call is honoured for
`FIRST_CALL_SECONDS`, or busy hosts would hand out leases that are never used.

A call may be asked to end before its time (see `endings`). The worker then ends with it, and its answer is not sent.

Data messages in: `terminal`, `sources`, `texts`, `setup`, `call`, `stop`. Out: `yield`, `result`, `error`, `revoked`, `need`
(sources or setup), `exiting`. A generator's items are `yield` messages, the last of which is followed by `result`;
between two items the worker looks for `stop`, which closes the generator.
Control messages in: `lease`, `reclaim`, `go`, `end`. Out: `hello`, `idle`, `expired`, `ending` (it ends by itself, see
`agent.process.end`), `connect` (see `wire.nested`), `records` (see `agent.usage`), `imported` (see
`agent.preloading`), `paused` and `resumed` (see `agent.running`).
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import Any, NoReturn

from atoll.agent import output, preloading, running, terminal
from atoll.agent.process import end as process_end
from atoll.agent.process.brief_calls import BRIEF_SECONDS, BriefCalls
from atoll.agent.process.state import ProcessState
from atoll.agent.questions import Questions
from atoll.agent.shared_memory import BUSY, DEADLINE, ENDING, GRACE, SERVED
from atoll.agent.snapshots import Snapshots
from atoll.agent.usage import REPORT_SECONDS, Meter, size_of
from atoll.payload import exceptions_dump, values
from atoll.payload.texts import load as texts_load
from atoll.wire import nested
from atoll.wire.call_protocol import KeptFunctions
from atoll.wire.channel import Channel, ChannelClosed, Socket
from atoll.wire.frames import FrameError, Message
from atoll.wire.payload_channel import PayloadChannel

FIRST_CALL_SECONDS = 5.0
MAX_POLL_MILLISECONDS = 1 << 30
_ENDED = select.POLLHUP | getattr(select, "POLLRDHUP", 0) | select.POLLERR
SOURCES_DIRECTORY = "/tmp/.atoll-sources"


class Worker:
    """Serves calls until its lease's `keep_alive` passes or the daemon is gone.

    Args:
        words: shared with the agent (see `shared_memory`).
        control: the channel to the daemon.
        sheet: shared with the agent: records of calls (see `agent.usage`).
        alarm: a pipe that tells the agent that the deadline has changed; owned from here on.
        state: of this process.
    """

    def __init__(self, words: memoryview, control: Channel, sheet: memoryview, alarm: int, state: ProcessState) -> None:
        self._state = state
        self._words = words
        self._control = control
        self._meter = Meter(sheet, control.send)
        self._data: Channel | None = None
        self._epoch = 0
        self._served = self._reclaimed = self._held = False
        self._idle_seconds = 10.0
        self._deadline = 0.0
        self._poll = select.poll()
        self._functions = KeptFunctions()
        self._questions = Questions()
        self._snapshots = Snapshots(self._questions)
        self._sources = ""
        self._setup: tuple[str, bytes] = "", b""
        self._prepared: list[Any] = []
        self._alarm = alarm
        self._pid = os.getpid()
        self._wanted = True
        self._brief_calls = BriefCalls()
        self._brief = False
        self._imported = preloading.Imported()
        self._control_number = -1

    def run(self, lease: dict[str, Any], descriptors: list[int]) -> NoReturn:
        """Serve, beginning with the lease that came with the fork, and end the process."""
        nested.use(self._control)
        self._poll.register(self._control, select.POLLIN)
        self._control_number = self._control.fileno()
        self._begin(lease, descriptors)
        self._held = bool(lease.get("hold"))  # until the worker is under its limit
        self._control.send({"type": "hello"})
        self._state.begin()
        with contextlib.suppress(ChannelClosed, KeyboardInterrupt):
            while self._held:
                self._listen()
            while self._wanted and self._serve_once():
                pass
        process_end.finish(0, process_end.GRACE_SECONDS)

    def _begin(self, lease: dict[str, Any], descriptors: list[int]) -> None:
        data, stdout, stderr = descriptors
        output.point(stdout, stderr)
        self._data = PayloadChannel(Socket(fileno=data), beside=not lease.get("relayed"))
        self._poll.register(self._data, select.POLLIN | select.POLLRDHUP)
        self._epoch = int(lease["epoch"])
        self._served = self._reclaimed = False
        self._words[GRACE] = int(float(lease.get("grace_seconds", 0.0)) * 1e9)
        self._first_call_by = time.monotonic() + FIRST_CALL_SECONDS
        self._rest(float(lease["keep_alive_seconds"]))

    def _rest(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._deadline = time.monotonic() + max(idle_seconds, 0.0 if self._served else FIRST_CALL_SECONDS)

    def _end(self, *, revoke: bool) -> None:
        """Give the lease up."""
        data = self._data
        if data is None:
            return
        self._data = None
        self._poll.unregister(data)
        if revoke:
            with contextlib.suppress(OSError, ChannelClosed):
                data.send({"type": "revoked", "epoch": self._epoch})
        data.close()
        output.flush()
        output.point_nowhere()

    def _serve_once(self) -> bool:
        """Wait for one event and serve it; return whether to go on."""
        timeout = (self._deadline - time.monotonic()) * 1000
        if self._meter.waiting:
            timeout = min(timeout, REPORT_SECONDS * 1000)
        events = self._poll.poll(min(timeout, MAX_POLL_MILLISECONDS)) if timeout > 0 else ()
        if not events:
            self._meter.report()
            return self._pass_time()
        data = self._data
        for descriptor, bits in events:  # the control channel was registered first, and comes first
            if descriptor == self._control_number:
                self._listen()
            elif data is not None and data is self._data:
                if bits & _ENDED:  # the client is gone: no one waits for answers to its calls
                    self._leave()
                else:
                    self._receive(data)
        return True

    def _pass_time(self) -> bool:
        if time.monotonic() < self._deadline:
            return True
        self._end(revoke=True)
        self._control.send({"type": "expired", "epoch": self._epoch})
        return False

    def _leave(self) -> None:
        if lost := self._state.restore() or self._state.lost():  # after a call whose answer nobody took
            self._serve_no_more(lost)
            return
        self._meter.report()
        self._end(revoke=False)
        self._control.send({"type": "idle", "epoch": self._epoch})

    def _listen(self) -> None:
        if not self._control.fill():
            return
        while self._control.pending:
            message = self._control.receive().header
            if message.get("type") == "lease":
                self._end(revoke=True)
                self._state.begin_lease()
                self._begin(message, self._control.take_descriptors(3))
            elif message.get("type") == "reclaim" and message.get("epoch") == self._epoch:
                self._reclaimed = True
                if not self._served:  # others do not wait for the keep-alive of a lease that nobody uses
                    self._deadline = min(self._deadline, self._first_call_by)
                self._yield()
            elif message.get("type") == "go":
                self._held = False
            elif message.get("type") == "end":
                self._meter.report()
                self._end(revoke=True)
                self._wanted = False

    def _yield(self) -> None:
        """Give a reclaimed lease up once it has served a call."""
        if self._reclaimed and self._served and self._data is not None:
            if lost := self._state.lost():
                self._serve_no_more(lost)
                return
            self._meter.report()
            self._end(revoke=True)
            self._control.send({"type": "idle", "epoch": self._epoch})

    def _receive(self, data: Channel) -> None:
        try:
            data.fill()  # a large message comes in pieces, and the daemon's word is heard between them
            while data.pending and self._data is data:
                self._handle(data, data.receive())
        except (ChannelClosed, FrameError):
            if self._data is data:
                self._leave()

    def _handle(self, data: Channel, message: Message) -> None:
        kind = message.type
        if kind == "call":
            self._words[BUSY] = self._epoch
            if timeout := message.header.get("timeout_seconds"):
                self._words[DEADLINE] = time.monotonic_ns() + int(float(timeout) * 1e9)
                with contextlib.suppress(OSError):  # a full pipe has woken it already
                    os.write(self._alarm, b"!")
            try:
                self._call(data, message)
            finally:
                self._words[DEADLINE] = self._words[BUSY] = 0
            self._words[SERVED] += 1
            self._served = True
            self._rest(float(message.header.get("keep_alive_seconds", self._idle_seconds)))
            if not self._brief and (lost := self._state.restore()):
                self._serve_no_more(lost)
            elif self._reclaimed:
                self._yield()
        elif kind == "sources":
            from atoll.payload import install

            self._words[BUSY] = self._epoch
            try:
                preloading.forget(message.header.get("origins", ()))
                with self._state.lasting():
                    install.install(message.header, message.buffers, SOURCES_DIRECTORY)
                self._sources = str(message.header["digest"])
            finally:
                self._words[BUSY] = 0
        elif kind == "texts":
            texts_load.show(message.buffers[0])
        elif kind == "terminal" and data.descriptors:  # a process that has all it may have gets none
            terminal.take(*data.take_descriptors(1))
        elif kind == "setup":
            self._setup, self._prepared = (str(message.header["digest"]), bytes(message.buffers[0])), []

    def _serve_no_more(self, lost: str) -> None:
        """End: the last call has left something that cannot be put back."""
        self._meter.report()
        self._end(revoke=True)
        self._control.send({"type": "ending", "epoch": self._epoch, "reason": lost})
        self._wanted = False

    def _call(self, data: Channel, message: Message) -> None:
        header, buffers = message
        if self._words[ENDING]:  # before it began
            self._retire()
        if header.get("epoch") != self._epoch:
            data.send({"type": "revoked", "epoch": header.get("epoch")})
            return
        pickled = self._functions.find(str(header.get("function", "")), buffers[0])
        if pickled is None:
            data.send({"type": "need", "function": header["function"]})
            return
        buffers[0] = pickled
        if header.get("sources") and header["sources"] != self._sources:
            data.send({"type": "need", "sources": header["sources"]})
            return
        if header.get("setup", "") and header["setup"] != self._setup[0]:
            data.send({"type": "need", "setup": header["setup"]})
            return
        if self._brief:  # here, not after the answer: the caller's next step would wait for it
            self._state.restore_briefly()
            self._brief = False
        output.arrange(header)
        self._meter.begin(header, buffers)
        pickles = self._brief_calls.searched(buffers)
        nested.call = self._meter.call
        self._questions.begin(data, header.get("call"), header.get("results") == "data")
        answer, pieces = self._state.run(self._answer, data, header, buffers)
        self._questions.end()
        self._snapshots.forget()
        if self._words[ENDING]:
            self._retire()
        output.flush()
        output.point_again()  # before a large answer opens descriptors, which could get the numbers of closed ones
        nested.call = ""
        wall = self._meter.end(answer, pieces)
        self._words[BUSY] = 0  # a caller that leaves with the answer must not have the worker ended for the rest
        data.send(answer, pieces)
        # The project's modules, and what `setup_function` made, are not searched.
        if wall < BRIEF_SECONDS and not self._sources and not self._prepared:
            self._brief = self._brief_calls.may_be(header.get("function", ""), pickles)
        self._meter.tick()
        if modules := self._imported.new():
            # Imports may depend on variables that the function, or a library, has set before.
            changed = self._state.variables_changed
            self._control.send({"type": "imported", "modules": modules, "variables_changed": changed})

    def _answer(
        self, data: Channel, header: dict[str, Any], buffers: list[bytearray]
    ) -> tuple[dict[str, Any], list[Any]]:
        call = header.get("call")
        plain = header.get("results") == "data"
        try:
            nested.refuse(threading.get_ident())
            try:
                prepared = self._prepare() if header.get("setup") else ()
                function = values.loads_function(buffers[0], bool(header.get("reusable")))
                args, kwargs = values.loads_arguments(buffers[1], buffers[2:])
            finally:
                nested.refuse(0)
            del buffers[:]
            args = (*prepared, *args)
            if header.get("stream"):
                value = self._stream(data, call, running.items(function, args, kwargs), plain)
            else:
                value = running.call(function, args, kwargs)
            self._end_child(None)
            return {"type": "result", "call": call}, values.dumps_answer(value, plain)
        except SystemExit as error:
            self._end_child(error)
            code = error.code
        except BaseException as error:
            self._end_child(error)
            described, pieces = exceptions_dump.dumps(error, plain)
            return {"type": "error", "call": call, "error": described}, pieces
        return self._exit(call, code)  # here, where no frame of the function is held any more

    def _end_child(self, error: BaseException | None) -> None:
        """End a child of the function's that has come back from it: it is not the worker."""
        if os.getpid() != self._pid:
            process_end.end_child(error)

    def _prepare(self) -> tuple[Any]:
        """Return the value of `setup_function`; run it unless it has finished in this worker."""
        if not self._prepared:
            function = values.loads_function(self._setup[1])
            nested.refuse(0)
            self._prepared.append(running.call(function, (), {}))
            nested.refuse(threading.get_ident())
            self._state.keep()
        return (self._prepared[0],)

    def _stream(self, data: Channel, call: Any, items: Any, plain: bool) -> Any:
        """Send the items as they are made, until their end or until the client has had enough."""
        heard = select.poll()
        heard.register(data, select.POLLIN)
        pacer = running.Pacer(self._control.send, self._epoch)
        close = getattr(items, "close", None)
        try:
            while True:
                try:
                    item = next(items)
                except StopIteration as end:
                    return end.value
                self._end_child(None)
                buffers = values.dumps_answer(item, plain)
                output.flush()
                with pacer:
                    data.send({"type": "yield", "call": call}, buffers)
                self._meter.sent_bytes += size_of(buffers[0])
                if data.pending or heard.poll(0):  # `stop`, or the end of the client
                    running.ignore_interrupts()  # the generator's `finally` has the grace for itself
                    return None
        finally:
            pacer.close()
            if close is not None:
                close()
            running.hear_interrupts()

    def _exit(self, call: Any, code: object) -> NoReturn:
        """End as `sys.exit(code)` in a program would, and say that this is why."""
        if self._words[ENDING]:
            self._retire()
        status = process_end.exit_status(code)

        def tell() -> None:
            output.flush()
            exiting = {"type": "exiting", "call": call, "status": status}
            with contextlib.suppress(OSError, ChannelClosed):
                self._meter.end(exiting)
                self._meter.report()
            if self._data is not None:
                with contextlib.suppress(OSError, ChannelClosed):
                    self._data.send(exiting)

        with contextlib.suppress(OSError, ChannelClosed):
            self._control.send({"type": "ending", "epoch": self._epoch})
        process_end.finish(status, process_end.GRACE_SECONDS, tell)

    def _retire(self) -> NoReturn:
        """End without an answer, as the agent has asked; it reports the call."""
        output.flush()
        process_end.finish(0, process_end.GRACE_SECONDS)
