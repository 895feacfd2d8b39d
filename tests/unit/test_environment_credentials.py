"""Which credentials a build may see."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from atoll.environments.asked.credentials import for_builds, host_of, indexes_of, netrc_of
from atoll.environments.asked.index import Index, read
from atoll.environments.asked.requirements import parse
from atoll.errors import EnvironmentBuildError

NETRC = """# what I know
machine a.example login me password one
machine B.example
  login me # password
  password "t w o"
macdef init
machine c.example password not-an-entry

machine machine password machine account password
default login anonymous password everyone
"""

UV = """
# publish token: hunter10
publish-url = "https://me:hunter11@publish.example"
extra-index-url = ["https://me:hunter12@extra.example/simple"]
compile-bytecode = true
concurrent-builds = 2
[[index]]
name = "own"
url = "https://me:hunter13@own.example/simple"
publish-url = "https://me:hunter14@own.example/"
[[index]]
name = "rare"
url = "https://me:hunter15@rare.example/simple"
explicit = true
[pip]
find-links = ["https://me:hunter16@links.example/"]
[config-settings]
"a key" = "va\\"lue\\u007f"
"""


@pytest.mark.parametrize(
    ("hosts", "lines"),
    [
        ([], ""),
        ([""], ""),
        (["a.example"], "machine a.example login me password one\n"),
        (["b.example"], 'machine b.example login me # password password "t w o"\n'),
        (["machine"], "machine machine password machine account password\n"),
        (["c.example"], "machine c.example login anonymous password everyone\n"),
        (["a.example", "d.example"], "machine a.example login me password one\nmachine d.example login anonymous"),
    ],
)
def test_a_netrc_is_reduced_to_the_hosts_in_use(hosts: list[str], lines: str) -> None:
    """Entries of other hosts and macros are left out; the entry for all hosts counts for those in use only."""
    text = NETRC.replace("# password\n  password", "password") if hosts == ["b.example"] else NETRC
    lines = lines.replace(" # password", "")
    assert netrc_of(text, hosts).startswith(lines)
    assert len(netrc_of(text, hosts).splitlines()) == len([host for host in hosts if host])


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://me:pass@Host.example:8080/simple", "host.example"),
        ("own=https://host.example/simple", "host.example"),
        ("x @ git+https://host.example/x ; python_version > '3'", "host.example"),
        ("http://[::1]:80/simple", "::1"),
        ("http://[::/simple", ""),
        ("/a/directory", ""),
        ("numpy", ""),
        ("://", ""),
    ],
)
def test_the_host_of_an_address_is_found(address: str, host: str) -> None:
    """An index's name, a package's name, user information and port are not the host."""
    assert host_of(address) == host


def test_a_configuration_is_reduced_to_what_installing_needs() -> None:
    """Comments, addresses for publishing and indexes that are not in use are left out; the rest means the same."""
    configuration = tomllib.loads(UV)
    assert [host_of(address) for address in indexes_of(configuration)] == [
        "extra.example",
        "own.example",
        "rare.example",
        "links.example",
    ]
    text = for_builds(configuration, credentials=True)
    assert "hunter12" in text
    assert "hunter13" in text
    assert "hunter16" in text
    assert not any(secret in text for secret in ("hunter10", "hunter11", "hunter14", "hunter15"))
    read_again = tomllib.loads(text)
    assert read_again["index"] == [{"name": "own", "url": "https://me:hunter13@own.example/simple"}]
    for name in ("compile-bytecode", "concurrent-builds", "pip", "config-settings"):
        assert read_again[name] == configuration[name]
    assert "hunter" not in for_builds(configuration, credentials=False)


def gather(place: Path, *entries: str, nested: bool) -> Index:
    home, configuration = place / "home", place / "config"
    (configuration / "uv").mkdir(parents=True)
    home.mkdir()
    (home / ".netrc").write_text(
        "machine env.example login me password hunter20\nmachine z.example password hunter21\n"
    )
    (configuration / "uv" / "uv.toml").write_text(UV)
    variables = {"UV_INDEX": "https://me:hunter22@env.example/?t=hunter23", "HTTPS_PROXY": "me:hunter24@proxy:1"}
    return read(variables, parse(entries), home=home, configuration=configuration, system=place, nested=nested)


def seen(variables: object, private: object) -> str:
    return f"{variables} {private}"


def test_a_build_has_credentials_of_the_indexes_in_use_only(tmp_path: Path) -> None:
    """The program's own request needs its indexes' credentials, and gets no others, in either phase."""
    found = gather(tmp_path, "x", nested=False)
    for text in (seen(found.variables, found.private), seen(found.build_variables, found.build_private)):
        assert "hunter20" in text
        assert "hunter21" not in text
        assert "hunter22" in text
    assert "hunter11" not in seen(found.build_variables, found.build_private)
    assert not found.withholds


def test_what_a_function_builds_has_no_credentials_of_the_owner(tmp_path: Path) -> None:
    """Wheels are fetched as the program would; the phase in which packages' code runs has only what was asked with."""
    found = gather(tmp_path, "x", nested=True)
    assert "hunter20" in seen(found.variables, found.private)
    assert "hunter" not in seen(found.build_variables, found.build_private)
    assert found.withholds


@pytest.mark.parametrize(
    "entry", ["x @ https://z.example/x.whl", "--extra-index-url https://z.example", "https://z.example/x.whl"]
)
def test_addresses_of_a_functions_own_are_asked_without_credentials(tmp_path: Path, entry: str) -> None:
    """A host that a function names is told nothing, though the owner's netrc knows it."""
    found = gather(tmp_path, "x", entry, nested=True)
    assert "hunter" not in seen(found.variables, found.private) + seen(found.build_variables, found.build_private)


def test_a_functions_own_credentials_are_kept(tmp_path: Path) -> None:
    """What a function says in its requirements is no secret from it."""
    found = gather(tmp_path, "x", "--index-url https://me:mine@z.example/simple", nested=True)
    assert found.build_variables["UV_DEFAULT_INDEX"] == "https://me:mine@z.example/simple"


def test_a_broken_configuration_is_said(tmp_path: Path) -> None:
    """A `uv.toml` that is no TOML is an error of its own."""
    (tmp_path / "uv.toml").write_text("index = [")
    variables = {"UV_CONFIG_FILE": str(tmp_path / "uv.toml")}
    with pytest.raises(EnvironmentBuildError, match="not TOML"):
        read(variables, parse(["x"]), home=tmp_path, configuration=tmp_path, system=tmp_path)
