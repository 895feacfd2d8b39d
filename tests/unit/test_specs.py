"""What the daemon takes from a client, as values."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.model.specs import EnvironmentSpec, LeaseSpec


@pytest.mark.parametrize(
    ("requirements", "said"),
    [
        (["x" * (33 << 10)], "an entry of 33792 bytes"),
        (["x"] * 2001, "2001 entries"),
        (["x" * (30 << 10)] * 40, "more than 1048576"),
        (["\udc80"], "not Unicode"),
    ],
)
def test_requirements_are_bounded(requirements: list[str], said: str) -> None:
    """Requirements that are too long, too many or no text are refused with what is wrong."""
    with pytest.raises(ValueError, match=said):
        EnvironmentSpec.from_data({"requirements": requirements})


@pytest.mark.parametrize(
    ("env", "said"),
    [({"A": "x" * (128 << 10)}, "more than 131072"), ({"A": "\udc80"}, "not Unicode"), ({"\ud800": ""}, "not Unicode")],
)
def test_the_variables_of_a_call_are_bounded(env: dict[str, str], said: str) -> None:
    """Variables that no process can be started with are refused with what is wrong."""
    with pytest.raises(ValueError, match=said):
        LeaseSpec.from_data({"environment": {}, "env": env})


def test_what_is_within_the_bounds_comes_back() -> None:
    """A pinned package with many hashes, and large variables, are taken as they are."""
    data: dict[str, Any] = {
        "environment": {"requirements": ["numpy==2 " + "--hash=sha256:" * 400] * 100},
        "env": {"A": "é" * 60_000},
    }
    spec = LeaseSpec.from_data(data)
    assert LeaseSpec.from_data(spec.to_data()) == spec


def test_trust_is_a_truth_value() -> None:
    """A client that names none is trusted as before; anything but true and false is refused."""
    data: dict[str, Any] = {"environment": {}}
    assert LeaseSpec.from_data(data).trusted
    assert not LeaseSpec.from_data({**data, "trusted": False}).trusted
    with pytest.raises(ValueError, match="`trusted`"):
        LeaseSpec.from_data({**data, "trusted": "no"})
