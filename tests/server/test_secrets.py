"""Secrets: variables of a user's calls, on `local` and on a server."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atoll import Host, LocalHost, errors, isolated
from atoll.cli.main import run
from atoll.daemon.secrets import keys
from atoll.daemon.secrets.store import SecretStore
from atoll.model.secret_values import MOST_BYTES, check_name, sealed
from atoll.model.specs import EnvironmentSpec, LeaseSpec
from atoll.node.function_variables import CACHE_VARIABLES
from atoll.server.accounts.bodies import NewUser
from atoll.settings import SecretsSettings, Settings
from tests.conftest import Home, needs_outbound, own_home

from .process import Server

VALUE = "hunter2-\N{GREEK SMALL LETTER ALPHA}"


def variables(*names: str) -> list[Any]:
    return [os.environ.get(name) for name in names] + [os.getpid()]


def inner(host: LocalHost, names: tuple[str, ...], **options: Any) -> list[Any]:
    from atoll import isolated

    found: list[Any] = isolated(host=host, network="none", **options)(variables)(*names)
    return found


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with own_home() as made:
        yield made


@pytest.fixture
def host(home: Home) -> Iterator[LocalHost]:
    made = LocalHost(home.path)
    for one in made.request("secrets.list", {})["secrets"]:
        made.request("secrets.delete", {"name": one["name"]})
    yield made
    made.close()


def on(host: Any, function: Any, **options: Any) -> Any:
    return isolated(host=host, network="none", **options)(function)


def put(host: LocalHost, **values: str) -> None:
    for name, value in values.items():
        host.request("secrets.set", {"name": name, "value": value})


def test_the_command_line_sets_lists_and_deletes(
    home: Home, host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Values come from standard input or a file, and are in no output."""
    monkeypatch.setenv("ATOLL_HOME", str(home.path))

    def atoll(*arguments: str) -> tuple[int, str]:
        status = run(["secrets", *arguments])
        found = capfd.readouterr()
        return status, found.out + found.err

    (tmp_path / "value").write_text(VALUE + "\n")
    assert atoll("set", "A_TOKEN", "--from-file", str(tmp_path / "value")) == (0, "set A_TOKEN\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{VALUE}\n".encode())))
    assert atoll("set", "B_TOKEN") == (0, "set B_TOKEN\n")
    status, listed = atoll("list", "--json")
    assert [one["name"] for one in json.loads(listed)] == ["A_TOKEN", "B_TOKEN"]
    assert VALUE not in listed + atoll("list")[1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    status, said = atoll("set", "B_TOKEN")
    assert (status, "no value on standard input" in said) == (2, True)
    status, said = atoll("set", "B_TOKEN", "shown-to-all")
    assert (status, "shown-to-all" in said, "which others can read" in said) == (2, False, True)
    assert on(host, variables)("A_TOKEN", "B_TOKEN")[:2] == [VALUE + "\n", VALUE]
    capfd.readouterr()  # the call may say how limits are kept
    assert atoll("delete", "A_TOKEN") == (0, "deleted A_TOKEN\n")
    status, said = atoll("delete", "A_TOKEN")
    assert (status, "no secret `A_TOKEN`" in said, "secrets set" in said) == (1, True, False)
    assert atoll("delete", "B_TOKEN", "C_TOKEN")[1].startswith("deleted B_TOKEN\n")
    status, said = atoll("set", "LD_PRELOAD")
    assert (status, "owns" in said) == (2, True)


def test_calls_have_all_secrets_or_those_they_name(host: LocalHost) -> None:
    """The option narrows; `env` is stronger; functions whose results are data get what they name alone."""
    put(host, ONE="1", TWO="2")
    assert on(host, variables)("ONE", "TWO")[:2] == ["1", "2"]
    assert on(host, variables, secrets=["TWO"])("ONE", "TWO")[:2] == [None, "2"]
    assert on(host, variables, secrets=[])("ONE", "TWO")[:2] == [None, None]
    assert on(host, variables, env={"ONE": "mine"})("ONE", "TWO")[:2] == ["mine", "2"]
    assert on(host, variables, results="data")("ONE", "TWO")[:2] == [None, None]
    assert on(host, variables, results="data", secrets=["ONE"])("ONE", "TWO")[:2] == ["1", None]
    with pytest.raises(errors.SecretUnknown, match="`GONE`"):
        on(host, variables, secrets=["GONE"])("GONE")


def test_nested_calls_have_at_most_the_secrets_of_the_call_around_them(host: LocalHost) -> None:
    """A function with one secret passes that one on, and cannot ask for another."""
    put(host, ONE="1", TWO="2")
    assert on(host, inner, secrets=["ONE"])(host, ("ONE", "TWO"))[:2] == ["1", None]
    with pytest.raises(errors.SecretUnknown, match="`TWO`"):
        on(host, inner, secrets=["ONE"])(host, ("TWO",), secrets=["TWO"])


def test_a_changed_secret_starts_a_new_worker(host: LocalHost) -> None:
    """An idle lease of the same program is given up, so that no later call has the old value."""
    put(host, ONE="old")
    f = on(host, variables, keep_alive=60)
    first, process = f("ONE")
    assert (first, f("ONE")[1]) == ("old", process)
    put(host, ONE="new")
    second, other = f("ONE")
    assert (second, other != process) == ("new", True)
    host.request("secrets.delete", {"name": "ONE"})
    assert f("ONE")[0] is None


def test_a_secret_in_force_stays_through_a_run_of_the_same_worker(host: LocalHost) -> None:
    """Setting the secret of another user ends no worker of this one."""
    put(host, ONE="1")
    f = on(host, variables, keep_alive=60)
    process = f("ONE")[1]
    with pytest.raises(errors.ResourcesUnavailable, match="NUL"):
        put(host, ONE="a\0b")
    assert f("ONE")[1] == process


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1A",
        "A-B",
        "A B",
        "PATH",
        "LD_PRELOAD",
        "PYTHONPATH",
        "ATOLL_HOME",
        "OMP_NUM_THREADS",
        "A\n",
        "Ä",
        "A" * 129,
    ],
)
def test_names_that_no_secret_can_have(name: str) -> None:
    """A name is a variable's, and none that Atoll, Python or the loader reads; SDK and daemon both refuse it."""
    with pytest.raises(ValueError, match=r"name|owns"):
        check_name(name)
    with pytest.raises(ValueError, match=r"name|owns"):
        isolated(secrets=[name])
    data = LeaseSpec(EnvironmentSpec()).to_data() | {"secrets": [name]}
    with pytest.raises(ValueError, match=r"name|owns"):
        LeaseSpec.from_data(data)


def test_variables_that_functions_find_are_no_names_of_secrets() -> None:
    """The directories of caches are Atoll's own."""
    for name in CACHE_VARIABLES:
        with pytest.raises(ValueError, match="owns"):
            check_name(name)


def test_a_spec_never_carries_values() -> None:
    """Names travel; values are no part of the data, the text or the keys' texts."""
    spec = replace(LeaseSpec(EnvironmentSpec(), secrets=("A",)), secret_values=sealed([("A", VALUE)]))
    assert VALUE not in json.dumps(spec.to_data(), ensure_ascii=False) + repr(spec) + repr(hash(spec))
    assert LeaseSpec.from_data(spec.to_data()).secrets == ("A",)
    assert sealed([("A", "1")]) != sealed([("A", "2")])
    assert sealed([("A", "1")]) == sealed([("A", "1")])
    assert sealed([("A", "bC"), ("D", "e")]) != sealed([("A", "b"), ("CD", "e")])


def test_a_server_keeps_secrets_of_its_users(server: Server) -> None:
    """The same requests over HTTP; no answer has a value."""

    def ask(request: str, **arguments: str) -> tuple[int, Any]:
        return server.ask("POST", f"/v1/requests/{request}", json.dumps(arguments).encode())

    assert ask("secrets.set", name="TOKEN", value=VALUE) == (200, {})
    status, value = ask("secrets.list")
    assert (status, [one["name"] for one in value["secrets"]]) == (200, ["TOKEN"])
    assert "hunter2" not in json.dumps(value)
    status, value = ask("secrets.set", name="PATH", value=VALUE)
    assert (status, value["error"]["code"]) == (400, "resources_unavailable")
    assert "hunter2" not in json.dumps(value)
    assert ask("secrets.delete", name="TOKEN") == (200, {})
    assert ask("secrets.delete", name="TOKEN")[1]["error"]["code"] == "secret_unknown"


@needs_outbound
def test_calls_over_a_server_have_their_users_secrets(server: Server) -> None:
    """Two users of one server: each call has its own user's values, a change counts, and detached calls have them too."""
    hosts = []
    for name in ("secret-ann", "secret-bob"):
        added = server.add_user(NewUser(name))
        assert added.key is not None
        key = {"key_id": added.key.id, "key_secret": added.key.secret}
        hosts.append(Host(server.url, ca_file=str(server.ca_file), **key))
    ann, bob = hosts
    try:
        ann.request("secrets.set", {"name": "TOKEN", "value": VALUE})
        f, g = on(ann, variables), on(bob, variables)
        assert (f("TOKEN")[0], g("TOKEN")[0]) == (VALUE, None)
        assert f.spawn("TOKEN").result(60)[0] == VALUE
        ann.request("secrets.set", {"name": "TOKEN", "value": "new"})
        assert f("TOKEN")[0] == "new"
        assert bob.request("secrets.list", {}) == {"secrets": []}
        assert on(ann, variables, secrets=[])("TOKEN")[0] is None
    finally:
        for host in hosts:
            host.close()


# --- the store ------------------------------------------------------------------------------------------------------


def made(path: Path, **options: Any) -> SecretStore:
    return SecretStore(lambda: Settings(path, secrets=SecretsSettings(**options)))


def test_rotation_leaves_one_key_and_all_values(tmp_path: Path) -> None:
    """A rotation encrypts every value of every user anew; the old key opens nothing then."""
    kept = made(tmp_path)
    for user in ("ann", "bob"):
        kept.set(user, "TOKEN", f"{VALUE} of {user}")
    key, file = tmp_path / "secrets" / "key", tmp_path / "secrets" / "ann.json"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before, old = key.read_text(), json.loads(file.read_text())["secrets"]["TOKEN"]
    assert kept.rotate() == 2
    assert len(key.read_text().splitlines()) == 1
    assert key.read_text() != before
    assert json.loads(file.read_text())["secrets"]["TOKEN"]["changed_at"] == old["changed_at"]
    for user in ("ann", "bob"):
        assert made(tmp_path).values(user).pairs == (("TOKEN", f"{VALUE} of {user}"),)
    key.write_text(before)
    with pytest.raises(errors.StateUnusable, match="which is not here"):
        made(tmp_path).values("ann")


def test_a_rotation_that_is_cut_off_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write of a rotation fails, every value can be read, and the next rotation completes."""
    kept = made(tmp_path)
    for user in ("ann", "bob"):
        kept.set(user, "TOKEN", f"{VALUE} of {user}")
    replaced, count = os.replace, 0

    for last in range(4):
        left = last

        def some(*paths: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device")
            replaced(*paths)

        monkeypatch.setattr(os, "replace", some)
        with pytest.raises(errors.StateUnusable):
            made(tmp_path).rotate()
        monkeypatch.setattr(os, "replace", replaced)
        count += 1
        for user in ("ann", "bob"):
            assert made(tmp_path).values(user).pairs == (("TOKEN", f"{VALUE} of {user}"),)
    assert count == 4
    made(tmp_path).rotate()
    assert len((tmp_path / "secrets" / "key").read_text().splitlines()) == 1


def test_the_key_may_come_from_a_command(tmp_path: Path) -> None:
    """Its first key encrypts; a rotation takes over the one that the operator has put before it."""
    lines = tmp_path / "lines"
    lines.write_text(keys.parse("one " + "A" * 43 + "=", "x").lines())
    command = (sys.executable, "-c", f"print(open({str(lines)!r}).read())")
    kept = made(tmp_path, key_command=command)
    kept.set("ann", "TOKEN", VALUE)
    assert not (tmp_path / "secrets" / "key").exists()
    lines.write_text("two " + "B" * 42 + "A=\n" + lines.read_text())
    assert made(tmp_path, key_command=command).rotate() == 1
    lines.write_text(lines.read_text().splitlines()[0])
    assert made(tmp_path, key_command=command).values("ann").pairs == (("TOKEN", VALUE),)
    with pytest.raises(errors.StateUnusable, match="status 3"):
        made(tmp_path, key_command=(sys.executable, "-c", "import sys; print('one AAAA'); sys.exit(3)")).values("ann")


def test_bounds_of_secrets(tmp_path: Path) -> None:
    """Number and size are bounded, and nothing is changed by one that does not fit."""
    kept = made(tmp_path)
    with pytest.raises(ValueError, match="bytes"):
        kept.set("ann", "LARGE", "x" * MOST_BYTES)
    kept.set("ann", "ONE", "x" * (60 << 10))
    with pytest.raises(errors.ResourcesUnavailable, match="may be"):
        kept.set("ann", "TWO", "x" * (60 << 10))
    assert kept.values("ann").names == ("ONE",)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `cryptography` the error says what to install."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(errors.StateUnusable, match="cryptography") as caught:
        made(tmp_path).set("ann", "TOKEN", VALUE)
    assert "atoll[server]" in caught.value.hint
