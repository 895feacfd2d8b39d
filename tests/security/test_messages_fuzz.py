"""Random and mutated messages of everything that a sandbox can send: read, or refused with the error that is handled."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from atoll.engine.pool_messages import Messages
from tests.fuzz import peers
from tests.unit.test_fuzz import mutated

from ..waiting import PATIENCE_SECONDS, soak

EXAMPLES = soak(25, 3000)
RANDOM = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.generate],  # seeds do not shrink
)

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**64,
    10**400,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "x\0y",
    "\ud800",
    "\x1b[2J",
    [],
    {},
)
"""Values that a handler might take for something else."""

values = st.recursive(
    st.sampled_from(HOSTILE) | st.integers() | st.text(max_size=8) | st.just("$worker") | st.just("$epoch"),
    lambda below: st.lists(below, max_size=14) | st.dictionaries(st.text(max_size=5), below, max_size=4),
    max_leaves=16,
)


def changed(honest: list[dict[str, Any]], dice: random.Random, pool: list[Any]) -> list[dict[str, Any]]:
    """Return honest messages with some of their values, at any depth, replaced by others."""

    def change(value: Any) -> Any:
        if dice.random() < 0.15:
            return dice.choice(pool)
        if isinstance(value, dict):
            return {key: change(below) for key, below in value.items() if dice.random() < 0.95}
        if isinstance(value, list):
            found = [change(below) for below in value]
            return found * dice.choice((1, 1, 1, 2)) if dice.random() < 0.9 else found[:-1]
        return value

    found = [message for message in honest for _ in range(dice.choice((1, 1, 2)))]
    return [{key: value if key == "type" else change(value) for key, value in message.items()} for message in found]


def text_of(messages: list[dict[str, Any]]) -> bytes:
    return peers.SPLIT.join(json.dumps(message, ensure_ascii=True).encode() for message in messages)


@pytest.mark.parametrize("name", peers.TARGETS)
def test_honest_messages_are_handled(name: str) -> None:
    """Each target handles the messages that fuzzing starts from."""
    for data in peers.seeds(name):
        peers.TARGETS[name](data)


@pytest.mark.parametrize("name", peers.HONEST)
def test_messages_with_other_values_are_handled(name: str) -> None:
    """Values of any type and size, in any field."""

    @given(st.sampled_from(peers.HONEST[name]), st.lists(values, min_size=1, max_size=5), st.integers(0, 2**32))
    @RANDOM
    def check(honest: list[dict[str, Any]], others: list[Any], seed: int) -> None:
        peers.TARGETS[name](text_of(changed(honest, random.Random(seed), [*others, *HOSTILE])))

    check()


@pytest.mark.parametrize("name", peers.TARGETS)
def test_mutated_messages_are_handled(name: str) -> None:
    """Bytes of honest messages changed, taken out, doubled and put in."""

    @given(st.sampled_from(peers.seeds(name)), st.integers(0, 2**32))
    @RANDOM
    def check(data: bytes, seed: int) -> None:
        peers.TARGETS[name](mutated(data, random.Random(seed)))

    check()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("worker", {"type": "paused", "epoch": float("inf")}),
        ("agent", {"type": "exited", "worker": "$worker", "records": [["c", "f", "", *[10**400] * 7, "ok", "", ""]]}),
        ("agent", {"type": "usage", "workers": {"$worker": {"busy": 10**400, "function": "x" * 50_000}}}),
        ("peer", {"type": "error", "errno": "x"}),
        ("peer", {"type": "error", "errno": 10**400}),
        ("peer", {"type": "error", "error": {"code": "disk_full", "details": {"self": 1}}}),
    ],
    ids=["epoch", "record", "usage", "errno", "large-errno", "details"],
)
def test_findings_stay_mended(name: str, message: dict[str, Any]) -> None:
    """Messages that fuzzing has found to get out of their handlers."""
    peers.TARGETS[name](text_of([message]))


@pytest.mark.parametrize("error", [AttributeError, OverflowError, RecursionError, RuntimeError])
@pytest.mark.parametrize("sender", ["agent", "worker"])
def test_an_error_that_nobody_expects_ends_its_sender(
    sender: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon listens to nobody less for it: the sandbox, or the worker, is ended, and others live on."""

    def fail(*_: Any) -> None:
        raise error("unforeseen")

    async def scenario() -> None:
        async with peers.world() as one:
            state, node = one.engine._state, one.bench.engine._node  # type: ignore[attr-defined]
            sandbox = state.sandboxes[one.worker.sandbox].node
            monkeypatch.setattr(Messages, f"_from_{sender}", fail)
            if sender == "agent":
                for _ in range(2):  # the handler of the next message is known already
                    await sandbox._agent.send({"type": "usage"})
            else:
                await sandbox._workers[one.worker.id]._control.send({"type": "idle"})
                while one.worker.id in sandbox._workers:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0)
                monkeypatch.undo()
            while one.worker.id in state.workers:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
            assert (sandbox in node.live) == (sender == "worker")
            assert one.hostile.ended.done()
            one.check()

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))
