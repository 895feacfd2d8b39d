"""The options of one Ray cluster, read from the server's settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from atoll import errors
from atoll.model import amounts as units
from atoll.model import machine_types
from atoll.model.options.ray import RaySettings
from atoll.server.ray.amounts import Amount
from atoll.server.ray.ledger import NodeType
from atoll.server.ray.settling import Rules

DEFAULT = "default"


@dataclass(frozen=True)
class RayOptions:
    """How a server uses a Ray cluster; `model.options.ray` says more.

    Args:
        address: of the cluster's head, `HOST:PORT`; `auto` for the one that this machine's Ray node belongs to.
        program: `atoll` on the machines; that word stands for the installation that Ray's workers there have.
    """

    address: str = "auto"
    node_address: str = ""
    namespace: str = "atoll"
    open: bool = False
    program: Sequence[str] = ("atoll",)
    home: str = "/var/lib/atoll-node"
    orphan_seconds: float = 600.0
    rest_seconds: float = 60.0
    types: Sequence[NodeType] = ()
    rules: Rules = field(default_factory=Rules)


def read(settings: RaySettings, address: str = "auto") -> RayOptions:
    """Return the options that settings say.

    Raises:
        StateUnusable: one of them cannot be read.
    """
    try:
        warm = Counter(_amount(name) for name in settings.warm)
        types = tuple(_machine(text) for text in settings.machine_types)
    except ValueError as error:
        raise errors.StateUnusable(f"the options `ray` of `settings.toml`: {error}", hint="mend them") from error
    return RayOptions(
        address=address,
        node_address=settings.node_address,
        namespace=settings.namespace,
        open=settings.open,
        home=settings.home,
        orphan_seconds=max(settings.orphan_seconds, 10.0),
        rest_seconds=settings.rest_seconds,
        types=types,
        rules=Rules(warm, settings.idle_seconds, settings.turn_seconds),
    )


def _amount(name: str) -> Amount:
    if name == DEFAULT:
        return Amount(1000)
    found = machine_types.find(name)
    return Amount(round(found.cpu * 1000), found.memory_bytes, found.gpus)


def _machine(text: str) -> NodeType:
    """Return the machine of `cpus=64, memory=256GiB, gpus=8, zone=a`; memory that is not named is no bound."""
    said = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"`{text}` names no machine; write `cpus=64, memory=256GiB, gpus=8`, and labels")
        said[name] = value
    cores, memory, gpus = said.pop("cpus", "0"), said.pop("memory", ""), said.pop("gpus", "0")
    memory_bytes = units.read_bytes("memory", memory) if memory else 1 << 62
    return NodeType(Amount(round(float(cores) * 1000), memory_bytes, int(gpus)), said)
