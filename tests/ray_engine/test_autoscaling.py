"""Demand that waits, and Ray's own autoscaler with machines that are processes; on a cluster that has no tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import stage
from .stage import Stage

OPEN_ADDRESS = "10.99.0.1"
"""Of the head: a cluster that loopback alone reaches needs no tokens."""
HEAD_ID = "f" * 51 + "00000"
"""The id that the provider gives to its head."""
NODE_TYPES: dict[str, Any] = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "two": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
UNUSED = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)
CONFIG: dict[str, Any] = {
    "cluster_name": "fake",
    "max_workers": 2,
    "provider": {"type": "fake_multinode", "launch_multiple": True, "head_node_id": HEAD_ID},
    "available_node_types": NODE_TYPES,
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.02,
    "auth": {"ssh_user": "nobody"},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{name: [] for name in UNUSED},
}


@pytest.fixture
def autoscaled() -> Iterator[Stage]:
    with stage.opened({"RAY_AUTH_MODE": "disabled"}) as opened:
        config = opened.directory / "autoscaling.json"
        config.write_text(json.dumps(CONFIG))
        # Its wheel lacks a file of the provider's defaults: the stage, which has mounts of its own, sees a copy with it.
        provider = Path(stage.ray_directory(), "autoscaler", "_private", "fake_multi_node")
        copy = opened.directory / "provider"
        shutil.copytree(provider, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "example.yaml").write_text(config.read_text())
        opened.run("mount", "--bind", str(copy), str(provider))
        opened.run("ip", "address", "add", f"{OPEN_ADDRESS}/32", "dev", "lo")
        opened.start_head(
            *("--num-cpus=0", f"--autoscaling-config={config}", f"--node-ip-address={OPEN_ADDRESS}"),
            variables={
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            },
        )
        yield opened


def test_waiting_demand_adds_a_machine(autoscaled: Stage) -> None:
    """A wish that no machine has room for gets one of the autoscaler's, which goes again when it is empty."""
    autoscaled.play("grows", variables={"ADDRESS": f"{OPEN_ADDRESS}:{stage.PORT}"})
