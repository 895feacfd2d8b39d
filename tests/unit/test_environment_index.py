"""Where packages come from."""

from __future__ import annotations

from pathlib import Path

from atoll.environments.asked.index import Index, read
from atoll.environments.asked.requirements import parse
from atoll.model.mounts import Bind


def gather(
    place: Path, variables: dict[str, str] | None = None, *entries: str, files: dict[str, str] | None = None
) -> Index:
    for name, text in (files or {}).items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read(
        variables or {},
        parse(["x", *entries]),
        home=place / "home",
        configuration=place / "config",
        system=place / "etc",
    )


def test_variables_of_pip_count_where_uv_has_none(tmp_path: Path) -> None:
    """`PIP_*` is translated, and `UV_*` of the same meaning wins."""
    found = gather(tmp_path, {"PIP_INDEX_URL": "https://p.example", "PIP_EXTRA_INDEX_URL": "https://a https://b"})
    assert found.variables["UV_DEFAULT_INDEX"] == "https://p.example"
    assert found.variables["UV_INDEX"] == "https://a https://b"
    found = gather(tmp_path, {"PIP_INDEX_URL": "https://p.example", "UV_DEFAULT_INDEX": "https://u.example"})
    assert found.variables["UV_DEFAULT_INDEX"] == "https://u.example"


def test_several_indexes_in_pips_words_are_one_in_rank(tmp_path: Path) -> None:
    """Extra indexes that pip's settings name are searched as pip does; those of uv's as uv does."""
    pip = gather(tmp_path, {"PIP_EXTRA_INDEX_URL": "https://a"})
    uv = gather(tmp_path, {"UV_INDEX": "https://a"})
    chosen = gather(tmp_path, {"PIP_EXTRA_INDEX_URL": "https://a", "UV_INDEX_STRATEGY": "first-index"})
    assert pip.variables["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert "UV_INDEX_STRATEGY" not in uv.variables
    assert chosen.variables["UV_INDEX_STRATEGY"] == "first-index"
    assert pip.facts != uv.facts


def test_requirements_own_options_come_first(tmp_path: Path) -> None:
    """An index that the requirements name replaces the caller's default and precedes the caller's others."""
    found = gather(
        tmp_path,
        {"UV_DEFAULT_INDEX": "https://mine", "UV_INDEX": "https://other", "PIP_FIND_LINKS": "https://l1 https://l2"},
        "--index-url https://asked",
        "--extra-index-url https://more",
    )
    assert found.variables["UV_DEFAULT_INDEX"] == "https://asked"
    assert found.variables["UV_INDEX"] == "https://more https://other"
    assert found.variables["UV_FIND_LINKS"] == "https://l1,https://l2"


def test_pips_files_count_where_uv_has_none(tmp_path: Path) -> None:
    """`pip.conf` is read from the machine's to the user's, and not at all beside a `uv.toml`."""
    files = {
        "etc/pip.conf": "[global]\nindex-url = https://machine\n",
        "config/pip/pip.conf": "[global]\nindex_url = https://user\nextra-index-url =\n  https://a\n  https://b\n",
    }
    found = gather(tmp_path, files=files)
    assert found.variables["UV_DEFAULT_INDEX"] == "https://user"
    assert found.variables["UV_INDEX"] == "https://a https://b"
    found = gather(tmp_path, files={"config/uv/uv.toml": 'index-url = "https://uv"\n'})
    assert "UV_DEFAULT_INDEX" not in found.variables
    assert found.private == (("UV_CONFIG_FILE", 'index-url = "https://uv"\n'),)


def test_local_indexes_are_shown_to_the_builder(tmp_path: Path) -> None:
    """A directory of wheels is bound where it is; an index's `simple` with the files beside it."""
    wheels, simple = tmp_path / "wheels", tmp_path / "mirror" / "simple"
    wheels.mkdir()
    simple.mkdir(parents=True)
    found = gather(
        tmp_path, {"PIP_FIND_LINKS": f"{wheels} {tmp_path}/gone", "UV_INDEX": f"own=file://{simple} https://far"}
    )
    assert found.binds == (
        Bind(str(simple.parent), str(simple.parent)),
        Bind(str(wheels), str(wheels)),
    )


def test_certificates_are_shown_where_the_variables_point(tmp_path: Path) -> None:
    """A certificate file is bound to a fixed place, and uv, pip and git are pointed there."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("")
    found = gather(tmp_path, {"REQUESTS_CA_BUNDLE": str(bundle)})
    (bind,) = found.binds
    assert bind.source == str(bundle)
    assert found.variables["SSL_CERT_FILE"] == found.variables["GIT_SSL_CAINFO"] == bind.target


def test_credentials_stay_out_of_what_is_kept(tmp_path: Path) -> None:
    """Passwords of addresses, netrc and `uv.toml` are among the secrets, and not in facts or representation."""
    found = gather(
        tmp_path,
        {"UV_DEFAULT_INDEX": "https://me:hunter21@host.example/simple", "HTTPS_PROXY": "http://u:hunter22@proxy:1"},
        files={
            "home/.netrc": "machine host.example login me password hunter23\n",
            "config/uv/uv.toml": '[[index]]\nurl = "https://me:hunter24@host.example/simple"\n',
        },
    )
    assert found.secrets == {"hunter21", "hunter22", "hunter23", "hunter24"}
    assert "hunter" not in repr(found)
    assert found.facts["default"] == ["https://host.example/simple"]
    other = gather(tmp_path, {"UV_DEFAULT_INDEX": "https://you:new@host.example/simple/"})
    assert found.facts == other.facts
