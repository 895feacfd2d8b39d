"""The options `ray` of `settings.toml`: how a server with the engine `ray` uses its cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RaySettings:
    """Rules for `atoll server --engine ray`.

    Args:
        node_address: this machine's address in the cluster, where it has several.
        namespace: of Atoll's actors; two servers in one cluster have different ones.
        open: consent to a cluster that takes commands without a token.
        home: state directory of the machines' nodes; `{name}` in it stands for a node's name.
        warm: resources that are kept ahead, free, on each machine: machine types, or `default` for one core.
        idle_seconds: what was free for that long beyond `warm` is given back to Ray.
        turn_seconds: while other programs wait, what becomes free is given back if Atoll has had it that long.
        rest_seconds: an autoscaler's machine that is empty for that long has its node ended, so that it can be removed.
        orphan_seconds: without a server for that long, nodes and held resources end.
        machine_types: machines that the autoscaler can add, such as `cpus=64, memory=256GiB, gpus=8, zone=a`.
    """

    node_address: str = ""
    namespace: str = "atoll"
    open: bool = False
    home: str = "/var/lib/atoll-node"
    warm: tuple[str, ...] = ("default",)
    idle_seconds: float = 10.0
    turn_seconds: float = 10.0
    rest_seconds: float = 60.0
    orphan_seconds: float = 600.0
    machine_types: tuple[str, ...] = ()
