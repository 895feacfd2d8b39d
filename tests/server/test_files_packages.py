"""Packages of the caller's machine in requirements of a server's functions: uploaded, built here, refused by name."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import atoll
from atoll.environments.asked import uploaded
from atoll.errors import EnvironmentBuildError
from atoll.host.remote import local_packages
from atoll.host.remote.remote_host import Host
from atoll.model.specs import EnvironmentSpec

from ..conftest import needs_outbound
from .process import Server
from .raw_line import RawLine

BACKEND = """
import os, zipfile

def build_wheel(directory, settings=None, metadata=None):
    name = "tree_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as file:
        file.writestr("tree_pkg.py", open("tree_pkg.py").read())
        file.writestr("tree_pkg-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tree-pkg\\nVersion: 1.0\\n")
        file.writestr("tree_pkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        file.writestr("tree_pkg-1.0.dist-info/RECORD", "")
    return name
"""


@pytest.fixture(scope="module")
def host(server: Server) -> Iterator[Host]:
    """The server as a host of functions."""
    key_id, secret = server.key
    made = Host(server.url, key_id=key_id, key_secret=secret, ca_file=str(server.ca_file))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "home"))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_INDEX_URL", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)  # a machine's own index may be a directory
    (tmp_path / "uv.toml").write_text("# in place of the machine's configuration of pip\n")
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    local_packages._known.clear()


def wheel(directory: Path, name: str, text: str) -> Path:
    """Make a wheel with one module."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", text)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def tree(directory: Path) -> Path:
    """Make a source tree that is built without anything of an index."""
    directory.mkdir()
    backend = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (directory / "pyproject.toml").write_text(f'{backend}[project]\nname = "tree-pkg"\nversion = "1.0"\n')
    (directory / "backend.py").write_text(BACKEND)
    (directory / "tree_pkg.py").write_text("WORD = 'tree'\n")
    return directory


@needs_outbound
def test_packages_of_this_machine_are_used_there(host: Host, tmp_path: Path) -> None:
    """A wheel, a source tree and a directory of wheels reach a function's environment on a server."""
    one = wheel(tmp_path / "dist", "one_pkg", "WORD = 'wheel'\n")
    wheel(tmp_path / "links", "two_pkg", "WORD = 'links'\n")
    entries = [str(one), f"-e {tree(tmp_path / 'tree')}", f"--find-links {tmp_path / 'links'}", "two-pkg", "--no-index"]

    @atoll.isolated(requirements=entries, host=host)
    def words() -> list[str]:
        import one_pkg  # type: ignore[import-not-found]
        import tree_pkg  # type: ignore[import-not-found]
        import two_pkg  # type: ignore[import-not-found]

        return [one_pkg.WORD, tree_pkg.WORD, two_pkg.WORD]

    assert words() == ["wheel", "tree", "links"]


def test_an_upload_serves_detached_calls_and_shows_no_path(server: Server, host: Host, tmp_path: Path) -> None:
    """A detached call finds its wheel; lines about the build, lock and record name it without the server's directory."""
    one = wheel(tmp_path / "dist", "late_pkg", "WORD = 'late'\n")
    entries = (str(one), "--no-index")
    spec = local_packages.uploaded(host, EnvironmentSpec(requirements=entries))
    seen = []
    for name in ("environments.build", "environments.lock", "environments.list"):
        line = RawLine(server, {"type": "request", "name": name, "arguments": {"environment": spec.to_data()}})
        while (header := line.header("progress", "answer", "failed"))["type"] == "progress":
            seen.append(header)
        assert header["type"] == "answer", header
        seen.append(header)
        line.close()
    assert any(one.name in str(header.get("line")) for header in seen)
    assert str(server.home.path) not in str(seen)

    @atoll.isolated(requirements=list(entries), host=host)
    def word() -> str:
        import late_pkg  # type: ignore[import-not-found]

        return str(late_pkg.WORD)

    assert word.spawn().result(60) == "late"


def test_an_upload_is_sent_once(server: Server, host: Host, tmp_path: Path) -> None:
    """A package that the server has is not sent again, and is kept for its user."""
    one = wheel(tmp_path / "dist", "once_pkg", "")
    spec = local_packages.uploaded(host, EnvironmentSpec(requirements=(f"once-pkg @ file://{one}", "other>=1")))
    digest = hashlib.sha256(one.read_bytes()).hexdigest()
    assert spec.requirements == (f"atoll-upload:{digest}/{one.name}", "other>=1")
    (found,) = (server.home.path / "uploads").glob(f"*/{digest}/{one.name}")
    changed = found.stat().st_ctime_ns, found.stat().st_ino
    local_packages._known.clear()
    local_packages.uploaded(host, EnvironmentSpec(requirements=(str(one),)))
    assert found.stat().st_ino == changed[1]


def test_a_tree_without_uv_is_refused_by_name(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without uv builds no wheels; the message names the tree and the next step."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(EnvironmentBuildError, match="source tree") as refused:
        local_packages.uploaded(host, EnvironmentSpec(requirements=(str(tree(tmp_path / "tree")),)))
    assert "uv" in refused.value.hint


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("/nowhere/pkg", "nothing at"),
        ("git+file:///repo", "git repository"),
        ("-f /nowhere", "cannot read"),
    ],
)
def test_paths_that_cannot_travel_are_refused_by_name(host: Host, entry: str, text: str) -> None:
    """A path that names nothing, or nothing that can be uploaded, is an error before the server is asked."""
    with pytest.raises(EnvironmentBuildError, match=text):
        local_packages.uploaded(host, EnvironmentSpec(requirements=(entry,)))


@pytest.mark.parametrize(
    "entry",
    [
        "atoll-upload:../../x.whl",
        f"atoll-upload:{'0' * 64}/../x.whl",
        f"atoll-upload:{'0' * 64}/.x.whl",
        f"atoll-upload:{'0' * 64}/x/y.whl",
        f"--find-links atoll-upload:{'0' * 63}",
        f"--find-links=atoll-upload:{'0' * 64}/..",
        f"x @ atoll-upload:{'0' * 64}/x.whl",
    ],
)
def test_forged_names_of_uploads_name_nothing(entry: str) -> None:
    """No entry leads out of the directory of its user's uploads."""
    with pytest.raises(EnvironmentBuildError, match="names no upload"):
        uploaded.split(EnvironmentSpec(requirements=(entry,)))


def test_an_upload_that_is_gone_says_so(tmp_path: Path) -> None:
    """An entry whose file is no longer there is an error with the next step."""
    spec = EnvironmentSpec(requirements=(f"atoll-upload:{'0' * 64}/x-1-py3-none-any.whl",))
    with pytest.raises(EnvironmentBuildError, match="no longer on the server"):
        uploaded.resolved(uploaded.split(spec)[1], tmp_path)


def test_only_wheels_with_their_digest_are_taken(server: Server) -> None:
    """The server keeps nothing that is not what it was announced as."""
    key = "0" * 64
    headers = {**server.headers(), "Atoll-Sha256": hashlib.sha256(b"x").hexdigest()}
    assert server.ask("PUT", f"/v1/packages/{key}/x-1-py3-none-any.whl", b"y", headers)[0] == 400
    assert server.ask("PUT", f"/v1/packages/{key}/x.tar.gz", b"x", headers)[0] == 400
    assert server.ask("PUT", "/v1/packages/..%2f..%2fx/x-1-py3-none-any.whl", b"x", headers)[0] in (400, 404)
    assert server.ask("PUT", f"/v1/packages/{key}/x-1-py3-none-any.whl", b"x", {})[0] == 401
    assert server.ask("GET", f"/v1/packages/{key}/x-1-py3-none-any.whl")[1] == {"present": False}
    left = [name for _, _, names in os.walk(server.home.path / "uploads") for name in names if name.startswith(".new")]
    assert left == []
