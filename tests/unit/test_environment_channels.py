"""Conda's packages and channels as values: what is the same, what is refused, what may be shown."""

from __future__ import annotations

import pytest

from atoll.environments.asked import conda_packages
from atoll.environments.asked.requirements import Requirements
from atoll.errors import EnvironmentBuildError

NOTHING = Requirements()


def _key(packages: list[str], names: list[str], **facts: str) -> str:
    found = conda_packages.parse(packages, names, NOTHING)
    given = {"python": "3.11", "platform": "linux-x86_64", **facts}
    return conda_packages.key_of(conda_packages.facts(found, virtual={}, pip_facts={}, fetch={}, **given))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((["b", "a"], []), (["a", "b", "a"], ["conda-forge", "pytorch"])),
        ((["numpy >= 1.2 , < 2"], []), (["NumPy>=1.2,<2"], [])),
        ((["a"], ["/srv/c/"]), (["a"], ["file:///srv/c"])),
        ((["a"], ["https://me:pw@host.example/t/abc/c/"]), (["a"], ["https://host.example/t/xyz/c"])),
        ((["a", "atoll>=1", "fal-serverless"], ["nodefaults"]), (["a"], [])),
    ],
)
def test_what_says_the_same_has_one_key(one: tuple[list[str], list[str]], other: tuple[list[str], list[str]]) -> None:
    """Order of packages, spaces, credentials and ways of writing do not matter."""
    assert _key(*one) == _key(*other)


def test_what_decides_the_result_is_in_the_key() -> None:
    """Versions, the order of channels, Python and the platform each give another key; fields do not run together."""
    keys = [
        _key(["a"], ["x", "y"]),
        _key(["a"], ["y", "x"]),
        _key(["a", "x"], ["y"]),
        _key(["a 1"], ["x", "y"]),
        _key(["a=1"], ["x", "y"]),
        _key(["a"], ["x", "y"], python="3.12"),
        _key(["a"], ["x", "y"], platform="linux-aarch64"),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("packages", "names"),
    [
        (["-r requirements.txt"], []),
        (["/srv/a-1-0.conda"], []),
        (["./a"], []),
        (["a\nb\x00"], []),
        ([], ["../c"]),
        ([], ["a b"]),
        ([], ["ftp://host.example/c"]),
        ([], ["file://host/c"]),
    ],
)
def test_entries_that_cannot_be_meant_are_named(packages: list[str], names: list[str]) -> None:
    """The error says which entry and what to write."""
    with pytest.raises(EnvironmentBuildError, match="cannot be read") as caught:
        conda_packages.parse(packages, names, NOTHING)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("packages", "names"),
    [
        ([], ["/srv/c"]),
        ([], ["file:///etc"]),
        (["a[url=file:///etc/a-1-0.conda]"], []),
        (["a[channel=x]"], []),
        (["https://host.example/linux-64/a-1-0.conda"], []),
        (["file:etc::a"], []),
    ],
)
def test_a_function_cannot_name_places_of_the_machine(packages: list[str], names: list[str]) -> None:
    """Neither directories nor addresses of single packages; channels of the network and names are fine."""
    with pytest.raises(EnvironmentBuildError):
        conda_packages.refuse_host_paths(conda_packages.parse(packages, names, NOTHING))
    conda_packages.refuse_host_paths(
        conda_packages.parse(["conda-forge::a>=1", "b 1 0"], ["x", "https://host.example/c"], NOTHING)
    )


@pytest.mark.parametrize("end", ["", "/", "/c", "/c/linux-64"])
def test_credentials_are_never_shown(end: str) -> None:
    """A password, a token and a query are in nothing that is shown or locked."""
    address = f"https://me:hunter2@host.example/t/tk-secret{end}"
    found = conda_packages.parse(["a"], [address], NOTHING)
    shown = " ".join(found.shown()) + repr(found) + conda_packages.lock_text(found, [("a", "1", "0", "")], [])
    assert not [secret for secret in ("hunter2", "tk-secret") if secret in shown]
    assert {"hunter2", "tk-secret"} <= found.secrets


def test_a_lock_is_read_back() -> None:
    """What `lock_text` writes, `pinned` finds: packages with digests, and what is on top."""
    found = conda_packages.parse(["a"], ["x"], NOTHING)
    text = conda_packages.lock_text(found, [("b", "2", "0", ""), ("a", "1", "py_0", "ab" * 32)], ["c==3"])
    assert conda_packages.pinned(text) == ((f"a==1=py_0[sha256={'ab' * 32}]", "b==2=0"), ("c==3",))
    assert conda_packages.pinned("") == ((), ())
