"""Two machines with one `/data`: files, syncs, snapshots and environments of one are there on the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll import Host, Volume, isolated, sync_dir

from ..conftest import ROOT, needs_outbound
from ..waiting import soak, until
from .cluster import Cluster, cluster

CASES = "from on_cloud import preferences_on_cloud, upload_to_cloud; preferences_on_cloud(); upload_to_cloud()"
KEPT_SECONDS = 3
"""Seconds that a worker without a call stays, and its sandbox with it."""
pytestmark = [pytest.mark.root, needs_outbound]


@pytest.fixture(scope="module", params=soak(("",), ("path", "juicefs")))
def made(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes whose `/data` is on a file system of all machines (`""`: of the default kind); this thread is on another one."""
    with cluster(data=request.param) as found, found.client.entered():
        yield found


@pytest.fixture
def host(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """The server, asked by its operator."""
    for name, value in made.variables.items():
        monkeypatch.setenv(name, value)
    found = Host()
    yield found
    found.close()


def on(made: Cluster, host: Host, name: str, function: Any, *args: Any, **options: Any) -> Any:
    """Return the value of a call on a node, and check that it ran there."""
    made.use_only(name)
    mark = made.mark

    def run() -> tuple[str, Any]:
        with open(mark) as file:
            return file.read().strip(), function(*args)

    node, value = isolated(host=host, keep_alive=KEPT_SECONDS, **options)(run)()
    assert node == name
    return value


def write(path: str, text: str) -> int:
    with open(path, "w") as file:
        file.write(text)
    return os.getuid()


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def test_a_function_reads_what_one_on_the_other_machine_has_written(made: Cluster, host: Host) -> None:
    """A file that was closed before the answer is read by the next call, wherever that runs, as the same owner."""
    for number in range(soak(3, 30)):
        one, two = ("one", "two") if number % 2 else ("two", "one")
        uid = on(made, host, one, write, "/data/file", f"text {number}")
        assert on(made, host, two, read, "/data/file") == f"text {number}"
        assert on(made, host, two, os.stat, "/data/file").st_uid == uid != 0
        assert on(made, host, two, os.getuid) == uid


def test_a_directory_changes_for_both_at_once(made: Cluster, host: Host, tmp_path: Path) -> None:
    """After a sync warm workers of both machines see the new tree, and after a restore the old one."""
    source = tmp_path / "source"
    source.mkdir()
    for version in ("first", "second"):
        (source / "text").write_text(version)
        target = sync_dir(source, "shared", host=host)
        for name in made.nodes:
            assert on(made, host, name, read, f"{target}/text") == version
        if version == "first":
            done = made.head.home.atoll("data", "snapshot", "kept", "--path", "sync/shared", env=made.variables)
            assert done.returncode == 0
    for name in made.nodes:
        assert on(made, host, name, read, "/data/.snapshots/kept/text") == "first"
    until(lambda: not host.request("status", {})["sandboxes"])  # those of another machine would hold a restore up
    Volume(host).restore("kept", wait=True)
    for name in made.nodes:
        assert on(made, host, name, read, "/data/sync/shared/text") == "first"


def test_the_cases_of_the_first_page_run_in_the_cloud(made: Cluster) -> None:
    """`examples/on_cloud.py` prints what its functions on the machines have found; its network is in `test_examples`."""
    done = made.head.home.python("-c", CASES, cwd=ROOT / "examples", env=made.variables)
    assert done.stdout.splitlines() == [
        "stored the preferences of user 7 in /data/user_7_preferences.txt",
        "another call reads: hiking, jazz, black tea",
        "uploaded to /data/sync/remote_dir",
        *("customers.csv", "orders.csv", "readme.txt"),
    ]


def test_an_environment_is_the_same_on_both(made: Cluster, host: Host) -> None:
    """Both machines have what one request names, at the same versions."""
    if not made.has_packages:
        pytest.skip("the machines' network has no index of packages")

    def versions() -> dict[str, str]:
        from importlib.metadata import distributions

        return {one.metadata["Name"]: one.version for one in distributions()}

    found = [on(made, host, name, versions, requirements=["idna"]) for name in made.nodes]
    assert "idna" in found[0]
    assert found[0] == found[1]
