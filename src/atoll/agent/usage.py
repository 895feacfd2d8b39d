"""Usage of each call: measured in the worker, reported to the daemon in batches.

Calls do not pass through the daemon, and a warm one costs about 100 us, so a call adds a few clock reads here and
little else: its record waits, and goes to the daemon when the worker is idle, when its lease ends, or when the oldest
has waited for `REPORT_SECONDS`. A worker that is killed cannot report. So records wait in memory that the agent shares
(a sheet for each worker), the one of the call that runs as well: at the worker's end the agent reports what is left
on its sheet, and which call was running.

Read from its sheet, a record is a list, in the order of `FIELDS`; the daemon checks every value (`engine.call_claims`).
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

REPORT_SECONDS = 0.1

RUNNING = ("call", "function", "parent", "queued_at", "started_at", "cpu")
"""What a worker says of the call that runs: three texts, then numbers."""

FIELDS = (
    "call",
    "function",
    "parent",
    "queued_at",
    "started_at",
    "wall_seconds",
    "cpu_seconds",
    "peak_bytes",
    "bytes_in",
    "bytes_out",
    "outcome",
    "error",
    "message",
)
"""Times are seconds since the epoch; `outcome` is `ok`, `error` or `exited`; `error` names the exception's type."""

SLOTS = 100
"""The number of records after which they are reported, however young."""

BRIEF_SECONDS = 0.0002
"""In less than this no child process can have run and ended, and no memory worth telling been touched."""

_COUNT = struct.Struct("=Q")
_BEGIN = struct.Struct("=dddQ64s128s64s")  # started_at, queued_at, CPU so far, bytes_in, call, function, parent
_END = struct.Struct("=ddQQ")  # wall_seconds, cpu_seconds, peak_bytes, bytes_out
_SLOT_BYTES = _BEGIN.size + _END.size
SHEET_BYTES = _COUNT.size + (SLOTS + 1) * _SLOT_BYTES
"""The number of records that wait, then their slots; the one behind them is of the call that runs, if any."""

_NOTHING = bytes(8)
MOST_MESSAGE = 8000
"""Characters of an error's message and frames."""


class Meter:
    """Measures the calls of one worker.

    Args:
        sheet: `SHEET_BYTES` of zeroed memory that the agent shares.
        send: takes a message to the daemon.
    """

    def __init__(self, sheet: memoryview, send: Callable[[dict[str, Any]], None]) -> None:
        import resource

        self._usage = resource.getrusage
        self._sheet = sheet
        self._send = send
        self._count = 0
        self._slot = _COUNT.size
        self._reported = time.monotonic()
        below = self._usage(-1)
        self._children = below.ru_utime + below.ru_stime
        self._peak = self._floor = 0
        self._header: dict[str, Any] | None = None
        self._began = self._cpu = 0.0
        self.sent_bytes = 0
        try:
            self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self._reset = -1

    @property
    def waiting(self) -> bool:
        """Return whether there are records that the daemon does not have."""
        return self._count > 0

    @property
    def call(self) -> str:
        """The call that runs now; empty between calls."""
        return "" if self._header is None else str(self._header.get("call", ""))

    def begin(self, header: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Begin to measure the call of this message."""
        if self._count >= SLOTS:
            self.report()
        self._header = header
        self._began = time.monotonic()
        self.sent_bytes = 0
        started, queued = time.time(), header.get("at")
        if self._peak > self._floor:  # the last call grew: measure this one's peak from the present use
            self._restart_peak()
        self._cpu = time.process_time()
        _BEGIN.pack_into(
            self._sheet,
            self._slot,
            started,
            queued if isinstance(queued, float) and queued > 0 else started,
            self._cpu + self._children,
            sum(map(size_of, buffers)),
            str(header.get("call", "")).encode("utf-8", "replace"),
            str(header.get("name", "")).encode("utf-8", "replace"),
            str(header.get("parent", "")).encode("utf-8", "replace"),
        )

    def _restart_peak(self) -> None:
        if self._reset >= 0:
            with contextlib.suppress(OSError):
                os.write(self._reset, b"5")
        self._floor = self._peak = self._usage(0).ru_maxrss

    def end(self, answer: dict[str, Any], pieces: Sequence[Any] = ()) -> float:
        """End the call that began last, with its answer and the answer's buffers; return its seconds."""
        header = self._header
        if header is None:
            return math.inf
        self._header = None
        wall = time.monotonic() - self._began
        if wall < BRIEF_SECONDS and self._peak:
            cpu, peak = time.process_time() - self._cpu, self._peak
        else:
            own, below = self._usage(0), self._usage(-1)
            children = below.ru_utime + below.ru_stime
            cpu = own.ru_utime + own.ru_stime - self._cpu + children - self._children
            self._peak = own.ru_maxrss
            peak = max(own.ru_maxrss, below.ru_maxrss) if children > self._children else own.ru_maxrss
            self._children = children
        sent = self.sent_bytes + sum(map(size_of, pieces))
        end = self._slot + _BEGIN.size
        _END.pack_into(self._sheet, end, wall, max(cpu, 0.0), peak << 10, sent)
        self._count += 1
        self._slot = end + _END.size
        self._sheet[self._slot : self._slot + 8] = _NOTHING
        _COUNT.pack_into(self._sheet, 0, self._count)
        if answer["type"] != "result":
            self.report(describe(answer))
        return wall

    def tick(self) -> None:
        """Report if it is time: after each answer."""
        if self._count:
            now = time.monotonic()
            if self._count >= SLOTS or now - self._reported >= REPORT_SECONDS:
                self.report(now=now)

    def report(self, last: Sequence[str] = (), now: float = 0.0) -> None:
        """Send the daemon its missing records; `last` is the last call's outcome if not `ok`."""
        self._reported = now or time.monotonic()
        if self._count:
            slots = self._sheet[_COUNT.size : self._slot].hex()  # JSON of each value would cost 5 us a call
            self._send({"type": "records", "slots": slots, "last": list(last)})
            self._count = 0
            self._slot = _COUNT.size
            self._sheet[: _COUNT.size + 8] = _NOTHING + _NOTHING


def describe(answer: dict[str, Any]) -> tuple[str, str, str]:
    """Return outcome, error's type, and its message with the frames, of an answer that is not a result."""
    if answer["type"] == "exiting":
        return "exited", "SystemExit", f"sys.exit({answer.get('status')})"
    try:
        first = answer["error"]["exceptions"][0]
        frames = [
            f'  File "{file}", line {line}, in {name}\n' + (f"    {source.strip()}\n" if source.strip() else "")
            for file, line, name, source, *_ in first["frames"][-20:]
        ]
        text = "".join(frames)[-MOST_MESSAGE // 2 :]
        return "error", str(first["type"])[:200], f"{str(first['text'])[: MOST_MESSAGE // 2]}\n{text}".rstrip()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return "error", "Exception", ""


def left(sheet: memoryview, usage: Any) -> tuple[list[list[Any]], list[Any] | None]:
    """Return the unreported records of an ended worker, and the record of its running call.

    Args:
        sheet: the worker's.
        usage: its usage from `os.wait4`.
    """
    count = min(_COUNT.unpack_from(sheet)[0], SLOTS)
    waiting = [_read(sheet, number, "ok") for number in range(count)]
    running = _read(sheet, count, "lost")
    if not running[4]:
        return waiting, None
    cpu = _BEGIN.unpack_from(sheet, _COUNT.size + count * _SLOT_BYTES)[2]
    running[5] = max(time.time() - running[4], 0.0)
    running[6] = max(usage.ru_utime + usage.ru_stime - cpu, 0.0)
    running[7] = usage.ru_maxrss << 10
    running[9] = 0
    return waiting, running


def running(sheet: memoryview) -> dict[str, Any]:
    """Return the call that runs, as its worker says: `RUNNING`; between calls `between` alone, before the first nothing.

    `cpu` is the CPU time that its worker had used when the call began.
    """
    number = min(_COUNT.unpack_from(sheet)[0], SLOTS)
    call, function, parent, queued, started, *_ = _read(sheet, number, "lost")
    if not started:  # the id of an earlier call stays where it was
        return {"between": True} if call or number else {}
    cpu = _BEGIN.unpack_from(sheet, _COUNT.size + number * _SLOT_BYTES)[2]
    return dict(zip(RUNNING, (call, function, parent, queued, started, cpu), strict=True))


def read_slots(slots: str, last: Sequence[str]) -> list[list[Any]]:
    """Return the records of a `records` message, for the daemon, which checks them.

    Raises:
        ValueError: there is none such.
    """
    data = memoryview(bytes.fromhex(slots))
    count, rest = divmod(len(data), _SLOT_BYTES)
    if rest or not 0 < count <= SLOTS + 1 or len(last) not in (0, 3):
        raise ValueError("`records` are not whole")
    found = [_read(data, number, "ok", 0) for number in range(count)]
    found[-1][10:] = last or found[-1][10:]
    return found


def _read(sheet: memoryview, number: int, outcome: str, first: int = _COUNT.size) -> list[Any]:
    start = first + number * _SLOT_BYTES
    started, queued, _, bytes_in, call, name, parent = _BEGIN.unpack_from(sheet, start)
    wall, cpu, peak, sent = _END.unpack_from(sheet, start + _BEGIN.size)
    texts = (_text(call), _text(name), _text(parent))
    return [*texts, queued, started, wall, cpu, peak, bytes_in, sent, outcome, "", ""]


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def size_of(buffer: Any) -> int:
    """Return the bytes of bytes, of a view, or of a rope."""
    return (
        len(buffer) if isinstance(buffer, (bytes, bytearray)) else int(getattr(buffer, "nbytes", None) or len(buffer))
    )
