"""Facts of a Ray cluster for its driver: nodes, what an autoscaler can add, whether other programs wait.

They come from the control service in one request, as `ray status` has them; `ray` has no public names for all of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import ray
import ray._raylet
from ray._private.state import state
from ray.core.generated import autoscaler_pb2

from atoll.server.ray import amounts

ASK_SECONDS = 5.0
_STATUS_KEY = b"__autoscaling_status"


class Cluster:
    """Looks at the cluster that this process is connected to; blocking, for one thread at a time."""

    def __init__(self) -> None:
        self._control = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        self._hosts: dict[str, str] = {}
        self._others_before = False

    def look(self, own: Iterable[Mapping[str, float]]) -> dict[str, Any]:
        """Return the facts, as `messages` describes them.

        Args:
            own: resources of holders that wait.

        Raises:
            Exception: the control service does not answer.
        """
        reply = autoscaler_pb2.GetClusterStatusReply()
        reply.ParseFromString(self._control.get_cluster_status(timeout_s=ASK_SECONDS))
        found = reply.cluster_resource_state
        alive = [one for one in found.node_states if one.status != autoscaler_pb2.NodeStatus.Value("DEAD")]
        if any(one.node_id.hex() not in self._hosts for one in alive):
            self._hosts = {one["NodeID"]: one["NodeManagerHostname"] for one in ray.nodes()}
        totals = [dict(one.total_resources) for one in alive]
        others = self._others_wait(found, own, totals)
        waits, self._others_before = others and self._others_before, others
        return {
            "nodes": [
                {
                    "id": one.node_id.hex(),
                    "host": self._hosts.get(one.node_id.hex(), ""),
                    "address": one.node_ip_address,
                    "total": amounts.to_data(amounts.of_resources(one.total_resources)),
                    "free": amounts.to_data(amounts.of_resources(one.available_resources)),
                    "labels": dict(one.labels),
                    "draining": one.status == autoscaler_pb2.NodeStatus.Value("DRAINING"),
                }
                for one in alive
            ],
            "types": self._types(),
            "scales": self._scales(reply),
            "others_wait": waits,  # twice in a row: a holder may have been asked for between two looks
        }

    @staticmethod
    def _others_wait(found: Any, own: Iterable[Mapping[str, float]], totals: list[dict[str, float]]) -> bool:
        """Return whether programs beside this one wait for resources that some node has."""

        def fits(bundle: Mapping[str, float]) -> bool:
            return bool(bundle) and any(
                all(total.get(name, 0) >= value for name, value in bundle.items()) for total in totals
            )

        waiting = Counter[frozenset[tuple[str, float]]]()
        for one in found.pending_resource_requests:
            waiting[frozenset(one.request.resources_bundle.items())] += one.count
        waiting.subtract(Counter(frozenset(one.items()) for one in own))
        gangs = [request for gang in found.pending_gang_resource_requests for request in gang.requests]
        return any(count > 0 and fits(dict(bundle)) for bundle, count in waiting.items()) or any(
            fits(dict(request.resources_bundle)) for request in gangs
        )

    @staticmethod
    def _types() -> list[dict[str, Any]]:
        config = state.get_cluster_config()
        groups = config.node_group_configs if config is not None else ()
        return [
            {"total": amounts.to_data(amounts.of_resources(one.resources)), "labels": {}}
            for one in groups
            if one.max_count
        ]

    def _scales(self, reply: Any) -> bool:
        """Return whether an autoscaler adds machines; one that only reports runs beside every head.

        Version 2 writes to the control service, and its machines have ids of their provider; version 1 leaves a status,
        in which machines have types.
        """
        if reply.autoscaling_state.autoscaler_state_version:
            return any(one.instance_id for one in reply.cluster_resource_state.node_states)
        status = self._control.internal_kv_get(_STATUS_KEY, None, timeout=ASK_SECONDS)
        report = json.loads(status).get("autoscaler_report") if status else None
        return any(kind != f"node_{node}" for node, kind in (report or {}).get("node_type_mapping", {}).items())
