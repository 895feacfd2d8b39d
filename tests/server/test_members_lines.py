"""Lines of machines that have joined: packages that a user uploads are found there, and a lost machine is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll import Host, isolated
from atoll.host.remote import package_uploads
from atoll.node.shared import marker
from atoll.server.cluster.cluster import Cluster
from atoll.server.cluster.contract import LOCAL, NodeFacts
from atoll.server.cluster.held import Away, Held
from atoll.settings import load

from ..conftest import needs_outbound
from .members import joined
from .process import running
from .test_files_packages import wheel

UPLOAD = {"environment": {"requirements": [f"atoll-upload:{'0' * 64}/a-1.0-py3-none-any.whl"]}}


@needs_outbound
def test_a_machine_that_shares_the_disk_builds_with_packages_that_came_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that runs on a machine which has joined imports a package of its caller's machine."""
    tmp_path.chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    marker.create(shared)
    package_uploads._known.clear()
    with running("--no-local") as server:
        server.end()
        with open(server.home.path / "settings.toml", "a") as options:
            options.write(f'\n[storage]\nfilesystem = "path"\npath = "{shared}"\n')
        server.start()
        assert load(server.home.path).storage.is_shared
        for name, value in server.client_variables.items():
            monkeypatch.setenv(name, value)
        with joined(server, "one"):
            host = Host(server.url, key_id=server.key[0], key_secret=server.key[1], ca_file=str(server.ca_file))

            @isolated(requirements=[str(wheel(tmp_path / "dist", "far_pkg", "WORD = 'far'"))], host=host)
            def word() -> str:
                import far_pkg  # type: ignore[import-not-found]

                return str(far_pkg.WORD)

            assert word() == "far"
            host.close()


@pytest.mark.parametrize(("spec", "volumes"), [(UPLOAD, "own:local"), ({"environment": {}}, ""), (None, "")])
def test_where_machines_share_no_disk_uploads_keep_to_the_one_of_the_server(spec: Any, volumes: str) -> None:
    """By `own_data` a call may go to any machine, one whose packages are on the server's disk to that one alone."""
    options = SimpleNamespace(cluster=SimpleNamespace(own_data=True))
    cluster = Cluster(cast("Any", SimpleNamespace(node=SimpleNamespace(options=options))))
    assert cluster.volumes_for(spec) == volumes
    cluster.facts[LOCAL] = NodeFacts(LOCAL, "", 1, 1, (), {}, "elsewhere")
    assert cluster.volumes_for(spec) == ("elsewhere" if volumes else "")


def test_the_machine_of_a_lost_line_is_known_afterwards() -> None:
    """Who asks for a line whose machine was lost can be told which one it was."""
    options = SimpleNamespace(cluster=SimpleNamespace(own_data=True))
    cluster = Cluster(cast("Any", SimpleNamespace(node=SimpleNamespace(options=options))))
    cluster.sessions |= {"one": Held("far", "ann", "key", ""), "other": Held("near", "ann", "key", "")}
    cluster._away["far"] = Away(0.0, "account", "machine")
    cluster._lose("far")
    assert (cluster.lost_with, list(cluster.sessions)) == ({"one": "far"}, ["other"])
