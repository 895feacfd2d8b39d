"""NumPy arrays as arguments and results, small and large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from .conftest import Place

NEEDS = [f"numpy=={np.__version__}"]

ARRAYS: dict[str, Callable[[], Any]] = {
    "empty": lambda: np.zeros((0, 3)),
    "of no dimension": lambda: np.array(3.5),
    "floats": lambda: np.arange(12.0).reshape(3, 4),
    "in columns' order": lambda: np.asfortranarray(np.arange(12).reshape(3, 4)),
    "every second": lambda: np.arange(100_000)[::2],
    "reversed": lambda: np.arange(100_000)[::-1],
    "transposed": lambda: np.arange(200_000).reshape(400, 500).T,
    "complex": lambda: np.array([1 + 2j]),
    "booleans": lambda: np.array([True, False]),
    "texts": lambda: np.array(["a", "日本"]),
    "dates": lambda: np.array(["2024-02-29", "NaT"], dtype="datetime64[D]"),
    "records": lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "objects": lambda: np.array([{"a": 1}, None], dtype=object),
    "of 8 MB": lambda: np.arange(1_000_000, dtype="f8"),
    "of 128 MB": lambda: np.arange(16_000_000, dtype="f8"),
    "a scalar": lambda: np.float32(0.1),
}


def echo(value: Any) -> Any:
    return value


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_as_it_went(place: Place, name: str) -> None:
    """Shape, type and contents are kept."""
    value = ARRAYS[name]()
    returned = place.isolated(echo, requirements=NEEDS, keep_alive=60)(value)
    assert type(returned) is type(value)
    assert returned.dtype == value.dtype
    assert returned.shape == value.shape
    assert np.array_equal(returned, value, equal_nan=value.dtype.kind in "fcM")


def test_arrays_can_be_written_on_both_sides(place: Place) -> None:
    """An array that arrived is the receiver's own: it can be changed, and nobody else sees it."""

    def change(array: Any) -> Any:
        array[0] = -1
        return array

    given = np.zeros(1_000_000)
    returned = place.isolated(change, requirements=NEEDS, keep_alive=60)(given)
    assert returned[0] == -1
    assert given[0] == 0
    returned[1] = 5
    again = place.isolated(change, requirements=NEEDS, keep_alive=60)(given)
    assert (again[0], again[1]) == (-1, 0)


def test_many_arrays_in_one_value_keep_their_places(place: Place) -> None:
    """Hundreds of arrays of different sizes in one argument arrive in order."""
    value = {number: np.full(number * 37, number) for number in range(300)}
    returned = place.isolated(echo, requirements=NEEDS, keep_alive=60)(value)
    assert list(returned) == list(value)
    assert all(np.array_equal(returned[number], value[number]) for number in value)


def test_arrays_are_plain_data_too(place: Place) -> None:
    """With `results="data"` arrays of plain types come back; those of objects are refused."""
    from atoll import errors

    function = place.isolated(echo, requirements=NEEDS, keep_alive=60, results="data")
    for name in ("floats", "in columns' order", "every second", "booleans", "texts", "of 8 MB"):
        value = ARRAYS[name]()
        returned = function(value)
        assert returned.dtype == value.dtype
        assert np.array_equal(returned, value), name
    with pytest.raises(errors.SerializationError):
        function(ARRAYS["objects"]())
