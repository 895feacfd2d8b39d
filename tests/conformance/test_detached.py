"""Detached calls: `spawn` and `spawn_map` give what calls give, to any program of the user."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from atoll import BatchHandle, CallHandle, errors
from atoll.sdk.retries import Retries

from .conftest import Place
from .samples import Color, Position
from .test_values import VALUES

SECONDS = 100.0
FACTOR = 7


def echo(value: Any) -> Any:
    return value


def scaled(value: int, *, extra: int = 0) -> int:
    return value * FACTOR + extra


def late(name: str) -> Any:
    return getattr(sys.modules[scaled.__module__], name)


def count(number: int) -> Iterator[int]:
    print("counting", flush=True)
    yield from range(number)


async def soon(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


def fail(text: str) -> None:
    raise LookupError(text)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(seconds: float) -> None:
    print("asleep", flush=True)
    time.sleep(seconds)


def variable(name: str) -> str | None:
    return os.environ.get(name)


def fail_until(path: str, attempts: int, how: str) -> int:
    """Fail in the given way until it has been tried so often; return how often that was."""
    with open(path, "a") as file:
        file.write("x")
    tried = os.path.getsize(path)
    if tried < attempts:
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ConnectionResetError("again") if how == "raise" else ValueError("for good")
    os.unlink(path)
    return tried


def test_values_come_back_as_they_were(place: Place) -> None:
    """What arrives is what was given, also from the disk."""
    values = [*VALUES.values(), Position(2, 3), Color.RED]
    batch = place.isolated(echo).spawn_map(values)
    assert list(batch.results(timeout=SECONDS)) == values


def test_every_kind_of_function_can_be_detached(place: Place) -> None:
    """Keyword arguments, globals, generators as lists, coroutines, lambdas, builtins."""
    handles: list[tuple[CallHandle[Any], Any]] = [
        (place.isolated(scaled).spawn(3, extra=1), 22),
        (place.isolated(count).spawn(4), [0, 1, 2, 3]),
        (place.isolated(count).spawn(0), []),
        (place.isolated(soon).spawn(1), 2),
        (place.isolated(lambda value: value + FACTOR).spawn(1), 8),
        (place.isolated(len).spawn("four"), 4),
        (place.isolated(scaled).spawn(2), 14),
    ]
    for handle, expected in handles:
        assert handle.result(timeout=SECONDS) == expected


def test_arguments_that_do_not_fit_are_refused_at_once(place: Place) -> None:
    """A call that is made later shows a wrong call now; of a batch nothing is kept then."""
    with pytest.raises(TypeError, match=r"`scaled`: missing a required argument"):
        place.isolated(scaled).spawn()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"`scaled`: got an unexpected keyword argument 'exta'"):
        place.isolated(scaled).spawn(3, exta=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"`count`: too many positional arguments") as raised:
        place.isolated(count).spawn_map([1, 2], [3, 4])  # type: ignore[call-arg]
    assert raised.value.__notes__ == ["from item 0 of the batch; nothing of it was kept"]
    prepared: Any = place.isolated(lambda ready, value: (ready, value), setup_function=lambda: "ready")
    with pytest.raises(TypeError, match="too many positional arguments"):
        prepared.spawn("ready", 5)


def test_options_of_a_call_are_honoured(place: Place) -> None:
    """`env`, `setup_function`, `results="data"`, `timeout`."""
    assert place.isolated(variable, env={"GREETING": "hello"}).spawn("GREETING").result(timeout=SECONDS) == "hello"
    prepared: Any = place.isolated(lambda ready, value: (ready, value), setup_function=lambda: "ready")
    assert prepared.spawn(5).result(timeout=SECONDS) == ("ready", 5)
    data = {"a": [1, 2.5, None]}
    assert place.isolated(echo, results="data").spawn(data).result(timeout=SECONDS) == data
    with pytest.raises(errors.SerializationError):
        place.isolated(lambda: object(), results="data").spawn().result(timeout=SECONDS)
    handle = place.isolated(sleep, timeout=0.2, grace=0.2).spawn(100)
    with pytest.raises(errors.CallTimeout):
        handle.result(timeout=SECONDS)
    assert handle.status().outcome == "timeout"


def test_names_that_code_asks_for_were_kept(place: Place) -> None:
    """There is no caller to ask: small values and functions come from the time of the call, others are an error."""
    assert place.isolated(late).spawn("FACTOR").result(timeout=SECONDS) == FACTOR
    found = place.isolated(late).spawn("scaled").result(timeout=SECONDS)
    assert found(1) == FACTOR
    with pytest.raises(AttributeError):
        place.isolated(late).spawn("no_such_name").result(timeout=SECONDS)


def test_large_values_travel(place: Place) -> None:
    """Twenty megabytes there and back."""
    value = os.urandom(1 << 20) * 20
    assert place.isolated(echo).spawn(value).result(timeout=SECONDS) == value


def test_exceptions_come_with_their_frames(place: Place) -> None:
    """They are raised at each look, and named in the status."""
    handle = place.isolated(fail).spawn("nowhere")
    for _ in range(2):
        with pytest.raises(LookupError, match="nowhere") as caught:
            handle.result(timeout=SECONDS)
        frames = []
        trace = caught.value.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert frames[-1] == "fail"
    assert (handle.status().outcome, handle.status().error) == ("error", "LookupError: nowhere")
    assert errors.call_id(caught.value) == handle.id


@pytest.mark.parametrize(
    ("function", "error", "outcome"),
    [
        (die, errors.WorkerDied, "killed"),
        (lambda: sys.exit(3), errors.WorkerDied, "exited"),
        (sys._getframe, errors.SerializationError, "error"),
    ],
)
def test_failures_have_their_outcomes(place: Place, function: Any, error: type[Exception], outcome: str) -> None:
    """As the record of any call has them."""
    handle = place.isolated(function).spawn()
    with pytest.raises(error):
        handle.result(timeout=SECONDS)
    assert handle.status().outcome == outcome


def test_a_call_that_cannot_start_is_refused(place: Place) -> None:
    """Its environment cannot be built: that is learned later, and the call has its outcome."""
    handle = place.isolated(len, requirements=["no-such-package-anywhere==9.9"]).spawn("x")
    with pytest.raises(errors.EnvironmentBuildError):
        handle.result(timeout=SECONDS)
    assert (handle.status().outcome, handle.status().attempts) == ("refused", 0)


def test_arguments_that_cannot_travel_are_an_error_at_once(place: Place) -> None:
    """Nothing is kept of the call, or of the batch."""
    with pytest.raises(errors.SerializationError):
        place.isolated(echo).spawn(iter_forever())
    with pytest.raises(errors.SerializationError):
        place.isolated(echo).spawn_map([1, iter_forever()])
    with pytest.raises(ValueError, match="at least one item"):
        place.isolated(echo).spawn_map([])


def iter_forever() -> Iterator[int]:
    while True:
        yield 1


def test_retries_are_made_by_the_keeper(place: Place) -> None:
    """For lost workers, for exceptions whose type or base is listed, and for no others; they are bounded."""
    path = "/data/detached-retries"
    lost = place.isolated(fail_until, retries=Retries(2, wait_seconds=0.01)).spawn(f"{path}-1", 3, "die")
    assert (lost.result(timeout=SECONDS), lost.status().attempts) == (3, 3)
    listed = place.isolated(fail_until, retries=Retries(2, on=(OSError,), wait_seconds=0.01))
    assert listed.spawn(f"{path}-2", 3, "raise").result(timeout=SECONDS) == 3
    other = listed.spawn(f"{path}-3", 3, "for good")
    with pytest.raises(ValueError, match="for good"):
        other.result(timeout=SECONDS)
    bounded = place.isolated(fail_until, retries=1).spawn(f"{path}-4", 9, "die")
    with pytest.raises(errors.WorkerDied):
        bounded.result(timeout=SECONDS)
    assert (other.status().attempts, bounded.status().attempts) == (1, 2)


def test_output_is_kept_and_can_be_followed(place: Place) -> None:
    """From its beginning, both streams in order, until the call has ended."""

    def speak() -> None:
        for number in range(20):
            print("out", number)
            print("err", number, file=sys.stderr)

    handle = place.isolated(speak).spawn()
    expected = "".join(f"out {number}\nerr {number}\n" for number in range(20))
    assert "".join(handle.logs(follow=True)) == expected
    handle.wait(timeout=SECONDS)
    assert "".join(handle.logs()) == expected


def test_a_running_call_is_followed_and_cancelled(place: Place) -> None:
    """Cancelling one that has ended changes nothing."""
    handle = place.isolated(sleep, grace=0.5).spawn(1000)
    logs = handle.logs(follow=True)
    assert next(logs).startswith("asleep")
    assert str(handle.status()) == "running"
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    assert handle.cancel()
    assert "".join(logs) in {"", "\n"}  # text and end of the line may come apart
    with pytest.raises(errors.CallCancelled):
        handle.result(timeout=SECONDS)
    assert handle.status().outcome == "cancelled"
    assert not handle.cancel()


def test_a_waiting_call_is_cancelled(place: Place) -> None:
    """It never starts; `max_concurrency` holds for detached calls too."""
    one_at_a_time = place.isolated(sleep, max_concurrency=1, grace=0.1)
    first, second = one_at_a_time.spawn(1000), one_at_a_time.spawn(1000)
    assert next(first.logs(follow=True)) == "asleep\n"
    assert str(second.status()) == "waiting"
    assert second.cancel()
    with pytest.raises(errors.CallCancelled):
        second.result(timeout=SECONDS)
    assert second.status().attempts == 0
    assert first.cancel()
    first.wait(timeout=SECONDS)


def test_handles_are_values(place: Place) -> None:
    """They can be pickled, compared, and made from an id or its beginning."""
    handle = place.isolated(echo).spawn(5)
    copy = pickle.loads(pickle.dumps(handle))
    assert copy == handle == CallHandle.from_id(handle.id[:8], place.host)
    assert len({copy, handle}) == 1
    assert repr(handle) == f"CallHandle({handle.id!r})"
    assert asyncio.run(copy.aio()) == 5
    handle.forget()
    for ask in (handle.status, handle.result, handle.cancel, lambda: list(handle.logs())):
        with pytest.raises(errors.CallUnknown):
            ask()
    with pytest.raises(errors.CallUnknown):
        CallHandle.from_id("never-was", place.host)
    with pytest.raises(errors.CallUnknown):
        BatchHandle.from_id("never-was", place.host)


def test_functions_cannot_detach_calls(place: Place) -> None:
    """A detached call that calls others is fine."""

    def spawns() -> str:
        from atoll import isolated

        try:
            isolated(len).spawn("x")
        except errors.ResourcesUnavailable as error:
            return error.message
        return "spawned"

    def calls() -> int:
        from atoll import isolated

        return isolated(len)("four")

    assert "a function cannot" in place.isolated(spawns)()
    assert place.isolated(calls).spawn().result(timeout=SECONDS) == 4


def test_a_batch_gives_its_results_in_order_and_as_they_come(place: Place) -> None:
    """And to later programs, by its id."""
    batch = place.isolated(scaled).spawn_map(range(30))
    expected = [number * FACTOR for number in range(30)]
    assert list(batch.results(timeout=SECONDS)) == expected
    again = pickle.loads(pickle.dumps(BatchHandle.from_id(batch.id, place.host)))
    assert again == batch
    assert sorted(again.results(ordered=False, timeout=SECONDS)) == expected
    assert batch.counts() == batch.wait(timeout=SECONDS) == {"ok": 30}
    assert [item.number for item in batch.items()] == list(range(30))
    assert len(batch) == 30
    assert batch.forget() == 30
    with pytest.raises(errors.CallUnknown):
        batch.counts()


def test_a_batch_is_resumed_with_the_items_that_failed(place: Place) -> None:
    """Others are not made again; a mended function may take the place of the first one."""
    marks = "/data/detached-marks"

    def picky(number: int) -> int:
        with open(f"{marks}-{number}", "a") as file:
            file.write("x")
        if number % 4 == 1 and not os.path.exists(f"{marks}-mended"):
            raise ValueError(number)
        return -number

    def mended(number: int) -> int:
        return 1000 + number

    function = place.isolated(picky)
    batch = function.spawn_map(range(8))
    assert batch.wait(timeout=SECONDS) == {"ok": 6, "error": 2}
    assert [(item.number, item.status.error) for item in batch.failed()] == [(1, "ValueError: 1"), (5, "ValueError: 5")]
    with pytest.raises(ValueError, match="1"):
        list(batch.results())
    assert [type(value).__name__ for value in batch.results(return_exceptions=True)].count("ValueError") == 2
    assert batch.resume() == 2
    assert batch.wait(timeout=SECONDS) == {"ok": 6, "error": 2}
    assert batch.resume(place.isolated(mended)) == 2
    assert list(batch.results(timeout=SECONDS)) == [0, 1001, -2, -3, -4, 1005, -6, -7]
    assert batch.resume() == 0
    sizes = place.isolated(lambda: [os.path.getsize(f"{marks}-{number}") for number in range(8)])()
    assert sizes == [1, 2, 1, 1, 1, 2, 1, 1]


def test_a_batch_is_cancelled(place: Place) -> None:
    """Waiting and running items end; they can be resumed."""
    batch = place.isolated(sleep, grace=0.1, max_concurrency=1).spawn_map([1000.0] * 5)
    assert batch.cancel() == 5
    assert batch.wait(timeout=SECONDS) == {"cancelled": 5}
    assert batch.forget() == 5
