"""Machines that share a file system build environments of the same versions, each its own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.environments.built.pins import Pins
from atoll.environments.built.records import Environment
from atoll.environments.store import EnvironmentStore

from ..environments import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Packages and a builder, below a directory that other uids may enter."""
    with tempfile.TemporaryDirectory(prefix="atoll-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        made = Machine(Path(directory))
        (made.home / "shared").mkdir()
        yield made


def store(machine: Machine, name: str) -> EnvironmentStore:
    """Return the store of a machine of this name."""
    return EnvironmentStore(
        machine.home / name / "environments",
        machine.confinement,
        machine.identities.builder(),
        shared_pins=machine.home / "shared" / "pins",
    )


def built(machine: Machine, stored: EnvironmentStore) -> Environment:
    return asyncio.run(stored.ensure(machine.spec("thing"), machine.lines.append))


def lock(environment: Environment) -> str:
    return (environment.directory / "requirements.lock").read_text()


def test_a_machine_builds_the_versions_of_the_first_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer release changes nothing for machines that build later, also where two begin at a time."""
    machine.wheel("thing", "1")
    assert lock(built(machine, store(machine, "first"))) == "thing==1\n"
    machine.wheel("thing", "2")
    assert lock(built(machine, store(machine, "second"))) == "thing==1\n"

    read, asked = Pins.read, list[str]()

    async def late(self: Pins, found: str) -> str:  # the first machine is done after this one has looked
        asked.append(found)
        return "" if len(asked) == 1 else await read(self, found)

    monkeypatch.setattr(Pins, "read", late)
    environment = built(machine, store(machine, "third"))
    assert lock(environment) == "thing==1\n"
    assert len(asked) > 1
    assert machine.python(environment, "import thing; print(thing.VERSION)") == "1"


def test_an_upgrade_counts_for_machines_that_build_later(machine: Machine) -> None:
    """An upgrade on one machine gives the new versions to all that build after it."""
    machine.wheel("thing", "1")
    first = store(machine, "first")
    built(machine, first)
    machine.wheel("thing", "2")
    _, changed = asyncio.run(first.upgrade(machine.spec("thing"), machine.lines.append))
    assert changed
    assert lock(built(machine, store(machine, "second"))) == "thing==2\n"


def test_a_shared_file_system_that_is_gone_holds_no_build_up(tmp_path: Path) -> None:
    """Without the shared directory a machine keeps its own versions."""
    (tmp_path / "own").mkdir()
    pins = Pins(tmp_path / "own", tmp_path / "gone" / "pins")
    assert asyncio.run(pins.read("key")) == ""
    threads = pins._threads._executor
    assert threads is not None
    threads.shutdown()  # a daemon's live as long as it
    pins.keep("key", "thing==1\n", renewed=False)
    assert asyncio.run(pins.read("key")) == "thing==1\n"
