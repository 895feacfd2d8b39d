"""Which credentials a build may see."""

from __future__ import annotations

import tomllib

import pytest

from atoll.environments.asked.credentials import (
    WITHHELD,
    for_builds,
    host_of,
    indexes_of,
    netrc_of,
    refuse_host_paths,
    without_credentials,
)
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


def gather(*entries: str, public: bool) -> Index:
    sent = {
        "UV_INDEX": "https://me:hunter22@env.example/?t=hunter23",
        "HTTPS_PROXY": "me:hunter24@proxy:1",
        "netrc": "machine env.example login me password hunter20\nmachine z.example password hunter21\n",
        "uv.toml": UV,
    }
    pairs = tuple(sorted(sent.items()))
    return read(dict(without_credentials(pairs) if public else pairs), parse(entries), str, str)


def seen(found: Index) -> str:
    return f"{found.variables} {found.private} {found.build_private}"


def test_a_build_has_credentials_of_the_indexes_in_use_only() -> None:
    """The program's own request needs its indexes' credentials, and gets no others, in either phase."""
    found = gather("x", public=False)
    for private in (found.private, found.build_private):
        assert "hunter20" in str(private)
        assert "hunter21" not in str(private)
    assert "hunter22" in str(found.variables)
    assert "hunter11" not in str(found.build_private)
    assert not found.withholds


@pytest.mark.parametrize(
    "entry", ["x", "x @ https://z.example/x.whl", "--extra-index-url https://z.example", "https://z.example/x.whl"]
)
def test_a_functions_own_request_has_no_credentials_of_its_program(entry: str) -> None:
    """Neither phase has any, and no host that the function names is told what the program's netrc knows."""
    found = gather("x", entry, public=True)
    assert "hunter" not in seen(found)
    assert "hunter" not in repr(found.facts)
    assert found.withholds
    assert found.fetch.get("credentials") is None
    assert found.variables["HTTPS_PROXY"] == "proxy:1"


def test_a_functions_own_credentials_are_kept() -> None:
    """What a function says in its requirements is no secret from it."""
    found = gather("x", "--index-url https://me:mine@z.example/simple", public=True)
    assert found.variables["UV_DEFAULT_INDEX"] == "https://me:mine@z.example/simple"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UV_INDEX", "https://me:hun@ter,x@a.example/s own=https://hunter@b.example https://c.example/s?t=hunter,y"),
        ("UV_FIND_LINKS", "https://me:hunter@a.example/l,https://b.example/l?t=hunter,/srv/wheels"),
        ("HTTPS_PROXY", "me:hun@ter@proxy:1"),
        ("http_proxy", "http://me:hunter@proxy:1"),
        ("uv.toml", '# https://me:hunter@a.example\n[pip]\nhttp-proxy = "me:hunter@proxy:1"\n'),
        ("uv.toml", 'index-url = "https://a.example/s?token=hunter"\n'),
        ("netrc", "machine a.example password hunter\n"),
    ],
)
def test_no_part_of_a_credential_stays(name: str, text: str) -> None:
    """Also where its author has not quoted an `@` or a comma in it."""
    cleaned = dict(without_credentials(((name, text),)))
    assert cleaned.pop(WITHHELD) == "1"
    assert not any(part in repr(cleaned) for part in ("hun", "ter", "token", "me:"))
    if name == "UV_FIND_LINKS":
        assert cleaned[name] == "https://a.example/l,https://b.example/l,/srv/wheels"


def test_settings_without_credentials_stay_as_they_are() -> None:
    """A function's request shares its program's environments where no credentials decide."""
    pairs = (("HTTPS_PROXY", "http://proxy:1"), ("UV_INDEX", "https://a https://b"), ("uv.toml", "# x@y\nindex = []"))
    assert without_credentials(pairs) is pairs
    assert without_credentials(without_credentials((*pairs, ("netrc", "x")))) == (*pairs, (WITHHELD, "1"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UV_FIND_LINKS", "https://a.example,/root/wheels"),
        ("PIP_FIND_LINKS", "wheels"),
        ("UV_INDEX", "own=file:///root/mirror"),
        ("UV_DEFAULT_INDEX", "/root/mirror"),
    ],
)
def test_paths_of_the_machine_are_for_callers_who_may_name_them(name: str, text: str) -> None:
    """A local index of another caller is refused with its name, or left out where nothing needs it."""
    with pytest.raises(EnvironmentBuildError, match=name):
        refuse_host_paths(((name, text),), needed=True)
    assert refuse_host_paths(((name, text), ("UV_INDEX", "https://a b=https://b")), needed=False) == (
        ("UV_INDEX", "https://a b=https://b"),
    )


def test_a_configuration_of_another_caller_chooses_packages_and_nothing_else() -> None:
    """Settings of a `uv.toml` that name paths, and sources of Pythons, which the daemon would run, are left out."""
    text = 'cache-dir = "/x"\nindex-url = "https://a.example"\n[pip]\ntarget = "/opt"\nno-index = true\n'
    own = (("UV_PYTHON_DOWNLOADS_JSON_URL", "https://a.example/list"), ("UV_PYTHON_INSTALL_MIRROR", "/root/mirror"))
    ((name, kept),) = refuse_host_paths((*own, ("uv.toml", text)), needed=True)
    assert name == "uv.toml"
    assert tomllib.loads(kept) == {"index-url": "https://a.example", "pip": {"no-index": True}}


def test_a_broken_configuration_is_said() -> None:
    """A `uv.toml` that is no TOML is an error of its own."""
    with pytest.raises(EnvironmentBuildError, match="not TOML"):
        read({"uv.toml": "index = ["}, parse(["x"]), str, str)
