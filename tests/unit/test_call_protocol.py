"""The call protocol: events in, frames and steps out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atoll import errors
from atoll.model.specs import Call
from atoll.wire import call_protocol
from atoll.wire.call_protocol import KEPT_FUNCTIONS, MOST_NEEDS, CallProtocol, KeptFunctions, Revoked
from atoll.wire.frames import Message


class Modules:
    """A bundle."""

    def message(self) -> tuple[dict[str, Any], list[bytes]]:
        return {"type": "sources", "digest": "aa"}, [b"source"]


def call(number: int = 0, **fields: Any) -> Call:
    return Call(f"id-{number}", b"function", b"arguments", **{"function_digest": "f0", "name": "f", **fields})


def shown(frames: Any) -> list[Any]:
    """Return the frames as types, calls with their id and function."""
    found: list[Any] = []
    for header, buffers in frames:
        data = json.loads(header) if isinstance(header, bytes) else header
        found.append((data["call"], bytes(buffers[0])) if data["type"] == "call" else data["type"])
    return found


def header_of(frames: Any) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(frames[-1][0])
    return header


def message(kind: str, **fields: Any) -> Message:
    return Message({"type": kind, **fields}, [])


def test_a_fresh_worker_gets_sources_and_setup_before_the_call() -> None:
    """A call that needs neither sends itself alone; the second call of a lease does too."""
    protocol = CallProtocol(7, fresh=True)
    needy = call(setup=b"setup", setup_digest="5e", sources="aa")
    assert shown(protocol.start(needy, 10.0, Modules())) == ["sources", "setup", ("id-0", b"function")]
    assert shown(protocol.start(needy, 10.0, Modules())) == [("id-0", b"")]
    assert shown(CallProtocol(7, fresh=True).start(call(), 10.0)) == [("id-0", b"function")]


def test_a_function_travels_once_for_each_lease() -> None:
    """Later calls name its digest; another function, and one without a digest, travel themselves."""
    protocol = CallProtocol(1, fresh=False)
    assert shown(protocol.start(call(1), 10.0)) == [("id-1", b"function")]
    assert shown(protocol.start_more([call(2), call(3, function_digest="f1"), call(4)])) == [
        ("id-2", b""),
        ("id-3", b"function"),
        ("id-4", b""),
    ]
    assert shown(protocol.start(call(5, function_digest=""), 10.0)) == [("id-5", b"function")]
    assert shown(protocol.start(call(6, function_digest=""), 10.0)) == [("id-6", b"function")]


def test_headers_hold_the_call_and_no_empty_fields() -> None:
    """Fields of one call never show up in the next."""
    protocol = CallProtocol(9, fresh=False)
    full = call(1, timeout_seconds=2.5, stream=True, results="data", reusable=True, sources="aa", at=12.25)
    assert header_of(protocol.start(full, 3.0, None, "parent")) == {
        "type": "call",
        "epoch": 9,
        "serializer": "cloudpickle",
        "keep_alive_seconds": 3.0,
        "name": "f",
        "function": "f0",
        "reusable": True,
        "sources": "aa",
        "parent": "parent",
        "timeout_seconds": 2.5,
        "stream": True,
        "results": "data",
        "call": "id-1",
        "at": 12.25,
    }
    assert set(header_of(protocol.start(call(2), 3.0))) == {
        "type",
        "epoch",
        "serializer",
        "keep_alive_seconds",
        "name",
        "function",
        "call",
        "at",
    }


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("result", "answer"),
        ("error", "answer"),
        ("yield", "item"),
        ("revoked", "revoked"),
        ("exiting", "exited"),
        ("anything", "wait"),
        ("", "wait"),
    ],
)
def test_steps(kind: str, step: str) -> None:
    """Each message has one reaction."""
    protocol = CallProtocol(1, fresh=False)
    protocol.start(call(), 10.0)
    assert protocol.receive(message(kind)) == (step, ())


class Program:
    """Names of a program."""

    def answer(self, question: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        return {"names": [question["name"]]}, [b"value"]


def test_a_question_for_a_name_is_answered() -> None:
    """The answer has the question's number, and the call goes on."""
    protocol = CallProtocol(1, fresh=False)
    protocol.start(call(names=Program()), 10.0)
    question = message("name", number=3, module="__main__", name="x")
    assert protocol.receive(question) == ("send", (({"type": "named", "number": 3, "names": ["x"]}, [b"value"]),))


def test_questions_are_bounded_and_refused_without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose results are plain data has no names, and none may ask without an end."""
    monkeypatch.setattr(call_protocol, "MOST_QUESTIONS", 2)
    protocol = CallProtocol(1, fresh=False)
    question = message("name", number=1, module="__main__", name="x")
    protocol.start(call(names=Program()), 10.0)
    assert [protocol.receive(question)[0] for _ in range(3)] == ["send", "send", "broken"]
    protocol.start(call(), 10.0)
    assert protocol.receive(question) == ("broken", ())


def test_a_message_whose_type_is_no_text_is_ignored() -> None:
    """A worker's code may write anything to its channel."""
    protocol = CallProtocol(1, fresh=False)
    protocol.start(call(), 10.0)
    assert protocol.receive(Message({"type": ["result"]}, []))[0] == "wait"


@pytest.mark.parametrize(
    ("missing", "sent"),
    [
        ({"sources": "aa"}, ["sources", ("id-0", b"")]),
        ({"setup": "5e"}, ["setup", ("id-0", b"")]),
        ({"function": "f0"}, [("id-0", b"function")]),
    ],
)
def test_needs(missing: dict[str, str], sent: list[Any]) -> None:
    """The part that the worker lacks is sent, then the call again."""
    protocol = CallProtocol(1, fresh=False)
    protocol.start(call(setup=b"setup", setup_digest="5e", sources="aa"), 10.0, Modules())
    step, frames = protocol.receive(message("need", **missing))
    assert (step, shown(frames)) == ("send", sent)


def test_a_worker_that_asks_again_and_again_breaks_the_protocol() -> None:
    """The count starts anew with the next call."""
    protocol = CallProtocol(1, fresh=False)
    for _ in range(2):
        protocol.start(call(sources="aa"), 10.0, Modules())
        steps = [protocol.receive(message("need", sources="aa"))[0] for _ in range(MOST_NEEDS + 1)]
        assert steps == ["send"] * MOST_NEEDS + ["broken"]


def test_stop_names_the_call_that_is_attended() -> None:
    """Of several calls that were sent, the caller waits for one."""
    protocol = CallProtocol(1, fresh=False)
    protocol.start(call(1), 10.0)
    second = call(2)
    protocol.start_more([second])
    protocol.attend(second)
    assert protocol.stop() == ({"type": "stop", "call": "id-2"}, ())


def test_both_ends_keep_the_same_functions() -> None:
    """Whatever the order of use, a worker has each function that a call only names, also after another client's."""
    protocol, worker = CallProtocol(1, fresh=False), KeptFunctions()
    for number in range(KEPT_FUNCTIONS):
        assert worker.find(f"other-{number}", b"x") == b"x"
    order = [(7 * number + number // 5) % (KEPT_FUNCTIONS + 9) for number in range(2000)]
    named = 0
    for number in order:
        sent = Call("c", b"code %d" % number, b"", function_digest=f"f{number}")
        ((_, buffers),) = protocol.start(sent, 10.0)
        named += buffers[0] == b""
        assert worker.find(sent.function_digest, buffers[0]) == sent.function
    assert named > 0
    assert len(worker._kept) == KEPT_FUNCTIONS


def test_a_worker_tells_a_function_that_it_does_not_have() -> None:
    """A function without a digest is always there."""
    worker = KeptFunctions()
    assert worker.find("f0", b"") is None
    assert worker.find("", b"code") == b"code"
    assert worker.find("", b"") == b""


def test_the_end_of_a_lease_has_the_error_that_the_daemon_sends() -> None:
    """A call that has not started runs again; a timeout names the call's own; a kill for a closed channel is told."""
    running = call(timeout_seconds=2.0)
    with pytest.raises(Revoked):
        call_protocol.ended(running, None, "", killed_here=False)
    died = errors.WorkerDied("the worker was killed", hint="look", signal=9, exit_status=None, last_output="").to_data()
    found = call_protocol.ended(running, died, "the end", killed_here=False)
    assert isinstance(found, errors.WorkerDied)
    assert "the worker of `f`" in str(found)
    assert found.last_output == "the end"
    assert "closed its channel" in str(call_protocol.ended(running, died, "", killed_here=True))
    late = errors.CallTimeout("late", hint="", timeout_seconds=9.0).to_data()
    assert "its timeout of 2 s" in str(call_protocol.ended(running, late, "", killed_here=False))
