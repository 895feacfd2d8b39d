"""Where packages come from: files and variables of the caller, and what becomes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll import file_stamp, settings
from atoll.environments.asked import index
from atoll.environments.asked.index import Index
from atoll.environments.asked.operator_index import NO_INDEX, OperatorIndex, of_settings
from atoll.environments.asked.requirements import parse
from atoll.errors import EnvironmentBuildError
from atoll.host import index_settings
from atoll.model.mounts import Bind
from atoll.model.options.environments import EnvironmentsSettings


def keyed(text: str) -> str:
    return f"keyed {hash(text)}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, a configuration directory and an `/etc` of the caller's; no variables are set."""
    for name in settings.INDEX_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(index_settings, "SYSTEM", str(tmp_path / "etc"))
    return tmp_path


def gather(
    place: Path,
    variables: dict[str, str] | None = None,
    *entries: str,
    files: dict[str, str] | None = None,
    operator: OperatorIndex = NO_INDEX,
) -> Index:
    for name, text in (files or {}).items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (variables or {}).items():
            patch.setenv(name, value)
        sent = index_settings.collect(["x", *entries])
    asked = parse(["x", *entries])
    return index.read(dict(sent), asked, keyed, index_settings.certificates, operator=operator)


def test_variables_of_pip_count_where_uv_has_none(place: Path) -> None:
    """`PIP_*` is translated, and `UV_*` of the same meaning wins."""
    found = gather(place, {"PIP_INDEX_URL": "https://p.example", "PIP_EXTRA_INDEX_URL": "https://a https://b"})
    assert found.variables["UV_DEFAULT_INDEX"] == "https://p.example"
    assert found.variables["UV_INDEX"] == "https://a https://b"
    found = gather(place, {"PIP_INDEX_URL": "https://p.example", "UV_DEFAULT_INDEX": "https://u.example"})
    assert found.variables["UV_DEFAULT_INDEX"] == "https://u.example"


def test_several_indexes_in_pips_words_are_one_in_rank(place: Path) -> None:
    """Extra indexes that pip's settings name are searched as pip does; those of uv's as uv does."""
    pip = gather(place, {"PIP_EXTRA_INDEX_URL": "https://a"})
    uv = gather(place, {"UV_INDEX": "https://a"})
    chosen = gather(place, {"PIP_EXTRA_INDEX_URL": "https://a", "UV_INDEX_STRATEGY": "first-index"})
    assert pip.variables["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert "UV_INDEX_STRATEGY" not in uv.variables
    assert chosen.variables["UV_INDEX_STRATEGY"] == "first-index"
    assert pip.facts != uv.facts


def test_requirements_own_options_come_first(place: Path) -> None:
    """An index that the requirements name replaces the caller's default and precedes the caller's others."""
    found = gather(
        place,
        {"UV_DEFAULT_INDEX": "https://mine", "UV_INDEX": "https://other", "PIP_FIND_LINKS": "https://l1 https://l2"},
        "--index-url https://asked",
        "--extra-index-url https://more",
    )
    assert found.variables["UV_DEFAULT_INDEX"] == "https://asked"
    assert found.variables["UV_INDEX"] == "https://more https://other"
    assert found.variables["UV_FIND_LINKS"] == "https://l1,https://l2"


def test_pips_files_count_where_uv_has_none(place: Path) -> None:
    """`pip.conf` is read from the machine's to the user's, and not at all beside a `uv.toml`."""
    files = {
        "etc/pip.conf": "[global]\nindex-url = https://machine\n",
        "config/pip/pip.conf": "[global]\nindex_url = https://user\nextra-index-url =\n  https://a\n  https://b\n",
    }
    found = gather(place, files=files)
    assert found.variables["UV_DEFAULT_INDEX"] == "https://user"
    assert found.variables["UV_INDEX"] == "https://a https://b"
    found = gather(place, files={"config/uv/uv.toml": 'index-url = "https://uv"\n'})
    assert "UV_DEFAULT_INDEX" not in found.variables
    assert found.private == (("UV_CONFIG_FILE", 'index-url = "https://uv"\n'),)


def test_local_indexes_are_shown_to_the_builder(place: Path) -> None:
    """A directory of wheels is bound where it is; an index's `simple` with the files beside it."""
    wheels, simple = place / "wheels", place / "mirror" / "simple"
    wheels.mkdir()
    simple.mkdir(parents=True)
    found = gather(place, {"PIP_FIND_LINKS": f"{wheels} {place}/gone", "UV_INDEX": f"own=file://{simple} https://far"})
    assert found.binds == (
        Bind(str(simple.parent), str(simple.parent)),
        Bind(str(wheels), str(wheels)),
    )


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
OTHER = CERTIFICATE.replace("AAAA", "BBBB")


@pytest.mark.parametrize("way", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "pip.conf"])
def test_certificates_come_from_each_place(place: Path, way: str) -> None:
    """The certificates of a file or directory are sent, each once, and nothing else of it."""
    text = f"# a comment\n{CERTIFICATE}\n{OTHER}\n{CERTIFICATE}\n-----BEGIN PRIVATE KEY-----\nno\n"
    file = place / "certificates" / "a.pem"
    named = {way: str(file.parent if way == "SSL_CERT_DIR" else file)}
    files = {"certificates/a.pem": text, "config/pip/pip.conf": f"[global]\ncert = {file}\n"}
    found = gather(
        place, {} if way == "pip.conf" else named, files=files if way == "pip.conf" else {"certificates/a.pem": text}
    )
    assert found.certificates == f"{CERTIFICATE}\n{OTHER}\n"
    assert found.private == (("SSL_CERT_FILE", found.certificates),)
    assert "SSL_CERT_DIR" not in found.variables


def test_a_file_that_is_too_large_is_named(place: Path) -> None:
    """A configuration beyond the limit is an error with its path."""
    with pytest.raises(EnvironmentBuildError, match=r"uv\.toml` is larger than 128 KiB"):
        gather(place, files={"config/uv/uv.toml": "#" * (200 << 10)})


def test_a_netrc_is_sent_for_the_hosts_that_the_request_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of other hosts stay with the caller."""
    (place / "home").mkdir()
    (place / "home" / ".netrc").write_text("machine a.example password one\nmachine b.example password two\n")
    monkeypatch.setenv("UV_INDEX", "https://a.example/simple")
    assert dict(index_settings.collect(["x"]))["netrc"] == "machine a.example password one\n"
    sent = dict(index_settings.collect(["x @ https://b.example/x.whl", "x"]))
    assert sent["netrc"].count("machine") == 2


def test_files_are_read_for_requirements_and_once_for_each_of_their_states(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without requirements no file is opened; afterwards each is opened when it has changed."""
    (place / "home").mkdir()
    netrc = place / "home" / ".netrc"
    netrc.write_text("machine a.example password one\n")
    os.utime(netrc, (1, 1))
    monkeypatch.setattr(file_stamp, "is_young", lambda stamp: False)
    monkeypatch.setenv("UV_INDEX", "https://a.example/simple")
    opened: list[str] = []

    def note(name: str, *arguments: Any) -> Any:
        opened.append(name)
        return open(name, *arguments)

    monkeypatch.setattr(index_settings, "open", note, raising=False)
    index_settings.collect([])
    assert opened == []
    index_settings.collect(["x"])
    index_settings.collect(["x"])
    assert opened.count(str(netrc)) == 1
    netrc.write_text("machine a.example password three\n")
    assert "three" in dict(index_settings.collect(["x"]))["netrc"]


def test_credentials_stay_out_of_what_is_kept(place: Path) -> None:
    """Passwords of addresses, netrc and `uv.toml` are among the secrets, and not in facts or representation."""
    found = gather(
        place,
        {"UV_DEFAULT_INDEX": "https://me:hunter21@host.example/simple", "HTTPS_PROXY": "http://u:hunter22@proxy:1"},
        files={
            "home/.netrc": "machine host.example login me password hunter23\n",
            "config/uv/uv.toml": '[[index]]\nurl = "https://me:hunter24@host.example/simple"\n',
        },
    )
    assert found.secrets == {"hunter21", "hunter22", "hunter23", "hunter24"}
    assert "hunter" not in json.dumps(found.facts)
    assert "hunter" not in repr(found)
    assert found.facts["default"] == ["https://host.example/simple"]
    other = gather(place, {"UV_DEFAULT_INDEX": "https://you:new@host.example/simple/"})
    assert found.facts["default"] == other.facts["default"]
    assert found.facts["fetch"] != other.facts["fetch"]


@pytest.mark.parametrize(
    ("variables", "entries"),
    [
        ({"HTTPS_PROXY": "http://proxy:1"}, []),
        ({"all_proxy": "proxy:1"}, []),
        ({"UV_INSECURE_HOST": "a.example"}, []),
        ({"UV_NATIVE_TLS": "1"}, []),
        ({}, ["--trusted-host a.example"]),
        ({"PIP_INDEX_URL": "https://me:hunter21@a.example/simple"}, []),
        ({"PIP_INDEX_URL": "https://a.example/simple?token=hunter21"}, []),
        ({}, ["y @ https://me:hunter21@a.example/y-1-py3-none-any.whl"]),
    ],
)
def test_each_way_of_fetching_has_facts_and_a_cache_of_its_own(
    place: Path, variables: dict[str, str], entries: list[str]
) -> None:
    """Proxies, unchecked hosts, the machine's certificates and credentials are told apart from the ordinary way."""
    found = gather(place, variables, *entries)
    assert found.fetch
    assert found.facts["fetch"] == found.fetch
    assert found.cache
    assert "hunter" not in json.dumps(found.facts)


@pytest.mark.parametrize(
    ("variables", "entries"),
    [
        ({}, []),
        ({"NO_PROXY": "*"}, []),
        ({"UV_NATIVE_TLS": "0", "UV_OFFLINE": "1", "UV_HTTP_TIMEOUT": "9"}, []),
        ({"UV_DEFAULT_INDEX": "https://mirror.example/simple"}, []),
        ({}, ["y @ git+ssh://git@a.example/y"]),
    ],
)
def test_the_ordinary_way_has_the_facts_that_it_always_had(
    place: Path, variables: dict[str, str], entries: list[str]
) -> None:
    """An index alone, and settings without an effect on the result, add nothing to the facts."""
    found = gather(place, variables, *entries)
    assert set(found.facts) == {"default", "extra", "links", "settings", "file"}
    assert found.cache == ""


PROGRAM = """
from atoll import isolated
def alone():
    return 1
def calling():
    return isolated(alone)()
for function in (alone, calling):
    print("uv.toml" in dict(isolated(function).request(()).spec.environment.index))
"""


def test_a_program_sends_its_settings_for_the_functions_that_its_function_calls(tmp_path: Path) -> None:
    """Without requirements of its own, a function that may call others brings the program's files for these."""
    (tmp_path / "uv.toml").write_text('index-url = "https://packages.example/simple"\n')
    variables = {**os.environ, "UV_CONFIG_FILE": str(tmp_path / "uv.toml")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_a_file_that_is_named_for_pip_comes_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`PIP_CONFIG_FILE` outranks the other files, an empty option of it too; `/dev/null` is pip's way to read none."""
    files = {"config/pip/pip.conf": "[global]\nindex-url = https://p.example\nfind-links = https://l.example\n"}
    named = place / "named.conf"
    named.write_text("[global]\nindex-url = https://n.example\nfind-links =\n")
    found = gather(place, {"PIP_CONFIG_FILE": str(named)}, files=files)
    assert found.variables["UV_DEFAULT_INDEX"] == "https://n.example"
    assert "UV_FIND_LINKS" not in found.variables
    assert "UV_DEFAULT_INDEX" not in gather(place, {"PIP_CONFIG_FILE": os.devnull}).variables
    assert gather(place).variables["UV_DEFAULT_INDEX"] == "https://p.example"


OPERATOR = OperatorIndex("https://lab.example", ("https://more.example",), ("file:///srv/wheels",))


def test_the_operators_index_takes_the_place_of_pypi(place: Path) -> None:
    """A user who names none gets it; a user's further indexes and directories come first, with the user's strategy."""
    found = gather(place, operator=OPERATOR)
    assert found.variables["UV_DEFAULT_INDEX"] == "https://lab.example"
    assert found.variables["UV_INDEX"] == "https://more.example"
    assert found.variables["UV_FIND_LINKS"] == "file:///srv/wheels"
    assert "UV_INDEX_STRATEGY" not in found.variables, "the first index that has a package gives it"
    assert found.facts != gather(place).facts
    both = gather(place, {"UV_INDEX": "https://own.example"}, "--find-links https://l.example", operator=OPERATOR)
    assert both.variables["UV_INDEX"] == "https://own.example https://more.example"
    assert both.variables["UV_FIND_LINKS"] == "https://l.example,file:///srv/wheels"


@pytest.mark.parametrize(
    ("variables", "entries", "text"),
    [
        ({"UV_DEFAULT_INDEX": "https://u.example"}, (), ""),
        ({"PIP_INDEX_URL": "https://u.example"}, (), ""),
        ({}, ("--index-url https://u.example",), ""),
        ({}, ("--no-index",), ""),
        ({}, (), 'index-url = "https://u.example"'),
        ({}, (), '[[index]]\nurl = "https://u.example"\ndefault = true'),
        ({}, (), "[pip]\nno-index = true"),
    ],
)
def test_a_default_index_of_ones_own_replaces_the_operators(
    place: Path, variables: dict[str, str], entries: tuple[str, ...], text: str
) -> None:
    """Whoever names a default index, or none, has packages of nowhere else."""
    files = {"config/uv/uv.toml": text} if text else None
    found = gather(place, variables, *entries, files=files, operator=OPERATOR)
    assert "lab.example" not in str(found.variables)
    assert "more.example" not in str(found.variables)
    assert "wheels" not in str(found.variables)


def test_directories_of_the_operator_are_read_only_in_builds(tmp_path: Path) -> None:
    """A directory is an address, whatever characters its name has, and the builder sees it."""
    directory = tmp_path / "a b,c"
    directory.mkdir()
    operator = of_settings(EnvironmentsSettings(users_find_links=(str(directory),)))
    assert operator.links == (f"file://{tmp_path}/a%20b%2Cc",)
    found = index.read({}, parse(["x"]), keyed, lambda _: "", operator=operator)
    assert found.binds == (Bind(str(directory), str(directory)),)
