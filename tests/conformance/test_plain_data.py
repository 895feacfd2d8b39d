"""`results="data"`: results come as plain data, and nothing that a worker sends runs code in the caller."""

from __future__ import annotations

import datetime as dt
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import errors

from .conftest import Place
from .samples import Order


def echo(value: Any) -> Any:
    return value


PLAIN: dict[str, Any] = {
    "None": None,
    "booleans": [True, False],
    "integers": [0, -1, 1 << 63, -(1 << 200)],
    "floats": [0.1, -0.0, math.inf, 1e-320],
    "texts": ["", "naïve 日本語 🏝️", "a\0b"],
    "bytes": [b"", bytes(range(256))],
    "lists and tuples": [[1, [2]], (3, (4,)), [], ()],
    "mappings": {"a": 1, 2: [3], (4, 5): None, None: {}},
    "sets": {1, "a", (2, 3)},
    "dates": [
        dt.date(2024, 2, 29),
        dt.datetime(2024, 2, 29, 12, 30, 1, 7),  # noqa: DTZ001 - one without a zone
        dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
        dt.timedelta(days=-1, microseconds=3),
    ],
    "megabytes": bytes(3_000_000),
    "many": list(range(50_000)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_data_comes_back_as_it_went(place: Place, name: str) -> None:
    """Values and types of plain data are kept."""
    value = PLAIN[name]
    returned = place.isolated(echo, results="data")(value)
    assert returned == value
    assert type(returned) is type(value)
    assert repr(returned)[:1000] == repr(value)[:1000] or isinstance(value, set)


def test_what_is_not_plain_is_refused(place: Place) -> None:
    """An object of a class is a `SerializationError` that names its type."""

    def make() -> Any:
        return {"order": [Order(1)]}

    with pytest.raises(errors.SerializationError, match="Order"):
        place.isolated(make, results="data")()


def test_a_result_that_would_run_code_does_not(place: Place, tmp_path: Path) -> None:
    """What runs code when it is unpickled is refused, and runs nothing in the caller."""
    mark = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    def attack() -> Any:
        return Attack()

    def attack_by_error() -> None:
        error = ValueError("carries more")
        error.payload = Attack()  # type: ignore[attr-defined]
        raise error

    with pytest.raises(errors.SerializationError):
        place.isolated(attack, results="data")()
    with pytest.raises((ValueError, errors.AtollError)):
        place.isolated(attack_by_error, results="data")()
    assert not mark.exists()


def test_exceptions_arrive_without_running_code(place: Place) -> None:
    """A builtin exception is its own type; another one a `RemoteError` with its name and message."""

    def builtin() -> None:
        raise KeyError("missing")

    def own() -> None:
        class Own(Exception):
            pass

        raise Own("from inside")

    with pytest.raises((KeyError, errors.RemoteError), match="missing"):
        place.isolated(builtin, results="data")()
    with pytest.raises(errors.RemoteError, match="from inside") as caught:
        place.isolated(own, results="data")()
    assert caught.value.type_name.endswith("Own")


def test_items_of_a_generator_are_plain_data_too(place: Place) -> None:
    """What a generator yields is decoded the same way."""

    def some() -> Iterator[Any]:
        yield {"a": (1, 2)}
        yield Order(1)

    items = place.isolated(some, results="data")()
    assert next(items) == {"a": (1, 2)}
    with pytest.raises(errors.SerializationError):
        next(items)


def test_a_worker_that_answers_in_its_own_words_is_not_believed(place: Place) -> None:
    """Bytes that code in the worker writes to its channels are an error of the call at most."""

    def babble() -> str:
        import stat

        for name in os.listdir("/proc/self/fd"):
            number = int(name)
            try:
                if number > 2 and stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.write(number, os.urandom(200))
            except OSError:
                continue
        return "said"

    with pytest.raises(errors.AtollError):
        place.isolated(babble, results="data", env={"CONFORMANCE": "babble"})()
    assert place.isolated(echo, results="data")(1) == 1
