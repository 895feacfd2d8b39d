"""The engine `ray` on a cluster of three nodes: its own, `a` with two GPUs, `b`; each scene leaves it as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ..waiting import soak
from . import stage
from .stage import Stage

SERVES = pytest.param("serves", marks=pytest.mark.skipif(os.geteuid() != 0, reason="a node of root's in namespaces"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Stage]:
    with stage.opened() as opened:
        local = f"--node-ip-address={stage.ADDRESS}"
        opened.start_head("--num-cpus=1", local, f"--system-config={stage.QUICK_CHECKS}")
        here, there = "--node-ip-address=127.0.0.2", "--node-ip-address=127.0.0.3"  # one address is one machine
        opened.start_node("--num-cpus=4", "--num-gpus=2", "--memory=1000000000", "--labels=zone=a", here)
        opened.start_node("--num-cpus=2", "--labels=zone=b", '--resources={"b": 1}', there)
        yield opened


LONG = ("shares_fairly", "survives", "loses")
"""Those of the long form: each takes 20 to 60 s."""


@pytest.mark.parametrize("scene", ["lends", "watches", SERVES, *soak((), LONG)])
def test_scenes(cluster: Stage, scene: str) -> None:
    """A server's dealings with Ray come out as the scene says; see `scenes`."""
    cluster.play(scene)


@pytest.mark.skipif(not soak(0, 1), reason="takes a minute; SOAK=1 runs it")
def test_a_head_that_is_started_again() -> None:
    """A head with its state on a disk is started again under a server; see the scene."""
    options = [
        "--num-cpus=0",
        f"--port={stage.PORT}",
        f"--node-ip-address={stage.ADDRESS}",
        "--include-dashboard=false",
    ]
    with stage.opened(
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": stage.TOKEN, "RAY_gcs_storage": "rocksdb"}
    ) as opened:
        kept = {"RAY_gcs_storage_path": str(opened.directory / "kept")}
        opened.start_head(*options, variables=kept)
        opened.start_node("--num-cpus=4", "--num-gpus=1", "--labels=zone=a", "--node-ip-address=127.0.0.2")
        opened.play("restarts_head", variables={**kept, "HEAD": " ".join(options)})
