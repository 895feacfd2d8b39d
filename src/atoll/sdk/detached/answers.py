"""Results of detached calls: from the frames that the host keeps to values and exceptions."""

from __future__ import annotations

import os
import pickle
import zlib
from typing import Any

from atoll import errors
from atoll.host import detached
from atoll.model.spool import CRC
from atoll.sdk.call import value_of
from atoll.wire.frames import Decoder, FrameError, Message


def result(host: Any, call: str) -> Any:
    """Return the result of a finished call, or raise its exception.

    Raises:
        StateUnusable: the result is damaged.
    """
    answer = detached.request(host, "detached.result", {"call": call})
    row = answer.value["call"]
    if answer.descriptor is None:
        failure = row.get("error") or {"code": "state_unusable", "message": f"the result of call {call} is not there"}
        raised = errors.from_data(failure)
        errors.set_call_id(raised, call)
        raise raised
    try:
        with open(answer.descriptor, "rb") as file:
            messages = _messages(file)
    except (OSError, FrameError) as error:
        raise errors.StateUnusable(
            f"the result of call {call} cannot be read: {error}", hint="its file was damaged: make the call again"
        ) from error
    *items, last = messages
    values = [value_of(item, row["results"], call) for item in items]
    value = value_of(last, row["results"], call)
    return values if row["stream"] else value


def as_pickle(value: Any) -> bytes:
    """Return a result as a pickle for a file.

    Raises:
        SerializationError: it has none.
    """
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:
        raise errors.SerializationError(
            f"the result, a `{type(value).__name__}`, cannot be written as a pickle: {error}",
            hint="take it in Python: `CallHandle.from_id(id).result()`",
        ) from error


def _messages(file: Any) -> list[Message]:
    decoder, crc = Decoder(), 0
    left = os.fstat(file.fileno()).st_size - CRC.size
    while left > 0:
        with decoder.space() as space, space[:left] as part:  # the decoder can grow no buffer that has a view
            count = file.readinto(part)
            if not count:
                raise FrameError("it is shorter than it was")
            left -= count
            with part[:count] as read:
                crc = zlib.crc32(read, crc)
        decoder.wrote(count)
    if file.read() != CRC.pack(crc):
        raise FrameError("its bytes have changed")
    if not decoder.between_messages or not decoder.messages:
        raise FrameError("it ends in the middle of a frame")
    return decoder.messages
