"""Records of calls come from the workers that ran them: a function makes none for calls of other programs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

import atoll
from atoll import isolated
from atoll.engine.call_claims import Claimed
from atoll.sdk.futures import CallFuture

from ..conftest import Home
from ..waiting import until

pytestmark = pytest.mark.as_user


@isolated(network="none", results="data")
def forge(victim: str, version: str) -> str:
    """Report a failure of another's call, and have a lease refused for it; return the refusal's code."""
    from atoll.agent import usage as meter
    from atoll.wire import nested
    from atoll.wire.channel import Channel

    now = time.time()
    slot = meter._BEGIN.pack(now, now, 0.0, 0, victim.encode(), b"forged", b"") + meter._END.pack(0.1, 0.1, 1, 1)
    assert nested._control is not None
    nested._control[1].send({"type": "records", "slots": slot.hex(), "last": ["error", "ValueError", "forged"]})
    spec = {"environment": {"kind": "virtualenv", "requirements": []}, "function": "forged", "mounts": {"/host": "/"}}
    channel = Channel(nested.connect())
    claim = {"call": victim, "at": now, "parent": ""}
    channel.send_many(
        [({"type": "hello", "version": version}, ()), ({"type": "lease", "spec": spec, "for": claim}, ())]
    )
    while (answer := channel.receive().header)["type"] != "failed":
        pass
    channel.close()
    return str(answer["error"]["code"])


def records(home: Home, function: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        home.atoll("calls", "list", "--json", "-n", "500", "--function", function).stdout
    )
    return found


def test_a_function_makes_no_record_of_a_call_of_another_program(one_machine: Home) -> None:
    """Its own call has a record, which comes after the forged ones; both programs call on one machine."""
    program = "import atoll; f = atoll.isolated(network='none')(abs).submit(-1); f.result(); print(f.call_id)"
    victim = one_machine.python("-c", program).stdout.strip()
    future = forge.submit(victim, atoll.__version__)
    assert future.result() == "resources_unavailable"
    assert isinstance(future, CallFuture)
    until(lambda: [one for one in records(one_machine, "forge") if one["call"] == future.call_id])
    assert records(one_machine, "forged") == []


def leaf(number: int) -> int:
    return number


@isolated(network="none", results="data", env={"CASE": "records of nested calls"})
def spread(count: int) -> int:
    """Run calls on several workers."""
    return sum(isolated(network="none", results="data")(leaf).map(range(count)))


@pytest.mark.usefixtures("shared_home")
def test_all_calls_of_a_nested_map_have_records(shared_home: Home) -> None:
    """Further leases, which are asked for without a call, keep the records of theirs."""
    future = spread.submit(60)
    assert future.result() == 1770
    assert isinstance(future, CallFuture)
    until(lambda: [one["parent"] for one in records(shared_home, "leaf")].count(future.call_id) == 60)


def test_who_may_claim_calls() -> None:
    """A maker is the user's program's, or that of the worker that has first claimed it."""
    claimed = Claimed()
    assert claimed.maker("1-p", "ann", None) == "p"
    assert claimed.maker("", "ann", None) is None
    assert [claimed.maker("2-p", "ann", "w1"), claimed.maker("", "ann", "w1")] == ["", ""]
    assert claimed.maker("1-f", "ann", "w1") == claimed.maker("2-f", "ann", "w1") == "f"
    assert claimed.maker("3-f", "ann", "w2") == ""
    assert claimed.maker("1-p", "bob", "w3") == "p"
