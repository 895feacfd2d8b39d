"""The actors of one namespace, as a driver makes them and finds them again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atoll.server.ray import amounts
from atoll.server.ray.holder import Holder
from atoll.server.ray.machine import Machine
from atoll.server.ray.settling import PREFIX

MACHINE_PREFIX = "atoll-node-"
FIND_SECONDS = 3.0
"""Seconds that actors which are found have to answer; a holder that does not answer waits for its resources."""
REPORT_SECONDS = 20.0
STOP_SECONDS = 40.0
AGAIN_SECONDS = 1.0
ORDER = ("node", "name", "home", "env", "given", "join", "argv")
NODE_LABEL = "ray.io/node-id"

_log = logging.getLogger("atoll.ray")


class Actors:
    """Holders and machines; see the module.

    Args:
        options: `namespace` and `orphan_seconds`.
        tell: sends a message to the server.
        call: runs a blocking function of Ray's in the thread for these.
    """

    def __init__(
        self, options: Mapping[str, Any], tell: Callable[..., None], call: Callable[..., Awaitable[Any]]
    ) -> None:
        self._options = options
        self._tell = tell
        self._call = call
        self._holders: dict[str, Any] = {}
        self._wanted: dict[str, dict[str, float]] = {}
        """Resources of the holders that there shall be."""
        self._held = set[str]()
        self._machines: dict[str, Any] = {}
        self._tasks = set[asyncio.Task[None]]()

    def waiting(self) -> list[dict[str, float]]:
        """Return the resources of holders that wait."""
        return [resources for name, resources in self._wanted.items() if name not in self._held]

    async def find(self) -> dict[str, Any]:
        """Take over the actors of an earlier driver; return facts of holders and reports of machines, by name."""
        holders, machines = await self._call(self._look_up)
        asked = {name: _future(actor.facts.remote()) for name, actor in holders.items()}
        asked |= {name: _future(actor.report.remote()) for name, actor in machines.items()}
        if asked:
            await asyncio.wait(asked.values(), timeout=FIND_SECONDS)
        answers = {
            name: future.result() if future.done() and not future.exception() else None
            for name, future in asked.items()
        }
        for name, actor in holders.items():
            self._attend(self._watch_holder(name, actor, answers[name]))
        for node, actor in machines.items():
            self._machines[node] = actor
            self._attend(self._watch_machine(node, actor))
        return {
            "holders": {name: answers[name] for name in holders},
            "machines": {node: answers[node] for node in machines},
        }

    def _look_up(self) -> tuple[dict[str, Any], dict[str, Any]]:
        holders, machines = {}, {}
        for name in ray.util.list_named_actors():
            if name.startswith((PREFIX, MACHINE_PREFIX)):
                try:
                    actor = ray.get_actor(name)
                except ValueError:  # it has ended meanwhile
                    continue
                if name.startswith(PREFIX):
                    holders[name] = actor
                else:
                    machines[name.removeprefix(MACHINE_PREFIX)] = actor
        return holders, machines

    # --- holders ----------------------------------------------------------------------------------------------------

    def hold(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Have exactly these holders: ask for those that are missing, give the others back."""
        self._wanted = {name: amounts.of_data(wish).resources() for name, wish in wanted.items()}
        for name in [name for name in self._holders if name not in wanted]:
            self._attend(self._release(self._holders.pop(name)))
        for name, wish in wanted.items():
            if name not in self._holders:
                self._holders[name] = None
                self._attend(self._make_holder(name, wish))

    async def _make_holder(self, name: str, wish: Mapping[str, Any]) -> None:
        try:
            actor = await self._call(self._create_holder, name, wish)
        except Exception as error:
            self._holders.pop(name, None)
            _log.warning("holder.refused holder=%s", name, exc_info=True)
            self._tell(event="over", holder=name, why=_why(error))
            return
        if name in self._holders:
            await self._watch_holder(name, actor, None)
        else:
            await self._release(actor)

    def _create_holder(self, name: str, wish: Mapping[str, Any]) -> Any:
        amount = amounts.of_data(wish)
        selector = dict(wish["labels"])
        if wish["besides"]:
            selector[NODE_LABEL] = f"!in({','.join(wish['besides'])})"
        near = wish["pinned"] or wish["preferred"]
        options: dict[str, Any] = {
            "name": name,
            "lifetime": "detached",
            "num_cpus": amount.millicores / 1000,
            "num_gpus": amount.gpus,
            "memory": amount.memory_bytes or None,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if selector:
            options["label_selector"] = selector  # Ray does not combine it with an affinity
        elif near:
            soft = not wish["pinned"]  # alone, `soft` waits for a busy node, and leaves a dead one only
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(near, soft, _spill_on_unavailable=soft)
        try:
            return (
                ray.remote(Holder).options(**options).remote(amounts.to_data(amount), self._options["orphan_seconds"])
            )
        except ValueError:  # the name is taken: an earlier driver made it
            return ray.get_actor(name)

    async def _watch_holder(self, name: str, actor: Any, facts: Mapping[str, Any] | None) -> None:
        self._holders[name] = actor
        try:
            while True:
                try:
                    if facts is None:
                        facts = await _future(actor.facts.remote())
                        self._tell(event="held", holder=name, facts=facts)
                    self._held.add(name)
                    await _future(actor.wait.remote(self._options["orphan_seconds"] / 4))
                except ray.exceptions.ActorUnavailableError:  # it does not answer, and may live
                    await asyncio.sleep(AGAIN_SECONDS)
        except ray.exceptions.RayError as error:
            why = _why(error)
        self._held.discard(name)
        if self._holders.get(name) is actor:
            del self._holders[name]
            _log.warning("holder.lost holder=%s why=%s", name, why)
        self._tell(event="over", holder=name, why=why)

    async def _release(self, actor: Any) -> None:
        if actor is not None:  # else it is being made, and released then
            await self._call(lambda: ray.kill(actor))

    # --- machines ---------------------------------------------------------------------------------------------------

    async def start(self, order: Mapping[str, Any]) -> None:
        """Have a machine's actor run a program; one that runs already goes on."""
        node = order["node"]
        if node not in self._machines:
            actor = await self._call(self._create_machine, node, order)
            self._machines[node] = actor
            self._attend(self._watch_machine(node, actor))

    def _create_machine(self, node: str, order: Mapping[str, Any]) -> Any:
        try:
            return (
                ray.remote(Machine)
                .options(
                    name=MACHINE_PREFIX + node,
                    lifetime="detached",
                    num_cpus=0,
                    max_restarts=-1,
                    max_task_retries=0,
                    max_concurrency=8,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                )
                .remote({key: order[key] for key in ORDER}, self._options["orphan_seconds"])
            )
        except ValueError:
            return ray.get_actor(MACHINE_PREFIX + node)

    async def stop(self, node: str) -> None:
        """End a machine's process and its actor."""
        actor = self._machines.pop(node, None)
        if actor is not None:
            try:
                await asyncio.wait_for(_future(actor.stop.remote()), STOP_SECONDS)
            except (ray.exceptions.RayError, TimeoutError) as error:
                _log.warning("machine.not_stopped node=%s why=%s", node, _why(error))
            await self._call(lambda: ray.kill(actor))

    async def _watch_machine(self, node: str, actor: Any) -> None:
        seen = -1
        while True:
            try:
                report = await _future(actor.report.remote(seen, REPORT_SECONDS))
            except ray.exceptions.ActorUnavailableError:  # Ray starts it again
                seen = -1
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            except ray.exceptions.RayError as error:
                _log.warning("machine.over node=%s why=%s", node, _why(error))
                break
            if report["version"] != seen:
                seen = report["version"]
                self._tell(event="machine", node=node, report=report)
        if self._machines.get(node) is actor:
            del self._machines[node]
        self._tell(event="machine", node=node, report=None)

    # --- small parts ------------------------------------------------------------------------------------------------

    def _attend(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("driver.task_failed", exc_info=task.exception())


def _future(reference: Any) -> asyncio.Future[Any]:
    found = asyncio.wrap_future(reference.future())
    found.add_done_callback(lambda one: one.cancelled() or one.exception())  # some are asked and not waited for
    return found


def _why(error: BaseException) -> str:
    """Return Ray's last words about an actor, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("The actor") or "node" in line.lower()]
    return (said or lines or [type(error).__name__])[-1][:300]
