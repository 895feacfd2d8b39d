"""The holder: an actor that takes resources of one Ray node, and does nothing else. No user's bytes come here."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any

import ray


class Holder:
    """Resources of one Ray node, as long as the actor lives.

    Args:
        facts: of the amount that it was created with; told to each driver that finds it.
        orphan_seconds: without a word from a driver after which the actor ends itself.
    """

    def __init__(self, facts: Mapping[str, Any], orphan_seconds: float) -> None:
        self._facts = dict(facts)
        self._orphan_seconds = orphan_seconds
        self._heard = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    async def facts(self) -> dict[str, Any]:
        """Return the amount, the Ray node and the ids of the GPUs that Ray gave it."""
        self._heard = time.monotonic()
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_orphan())
        context = ray.get_runtime_context()
        return {**self._facts, "node": context.get_node_id(), "gpu_ids": [str(gpu) for gpu in ray.get_gpu_ids()]}

    async def wait(self, seconds: float) -> None:
        """Return after a while: whoever waits for this learns of the actor's end at once."""
        self._heard = time.monotonic()
        await asyncio.sleep(seconds)

    async def _end_orphan(self) -> None:
        """End the actor when no driver has asked for long: its server is gone for good."""
        while (left := self._heard + self._orphan_seconds - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)  # until the last word, which may change meanwhile, is old
        os._exit(0)
