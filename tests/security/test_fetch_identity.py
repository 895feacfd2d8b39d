"""Attacks by the way packages are fetched: the credentials, proxy or certificates of one caller must not decide what
another one gets, from built environments or from caches.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll.daemon import leasing
from atoll.daemon.leasing import Caller
from atoll.environments.asked.credentials import WITHHELD, without_credentials
from atoll.environments.build import caches
from atoll.environments.build.conda import CondaRecipe
from atoll.environments.build.recipes import Recipe
from atoll.environments.built import interpreter
from atoll.environments.built.interpreter import Interpreter
from atoll.errors import EnvironmentBuildError
from atoll.model.options.environments import EnvironmentsSettings
from atoll.model.specs import EnvironmentSpec
from atoll.settings import INDEX_VARIABLES, Settings
from tests.conftest import Home, find_tool
from tests.environments import Machine, serve

pytestmark = [
    pytest.mark.as_user,
    pytest.mark.skipif(sys.platform != "linux", reason="environments are built on Linux"),
]
VERSION = "import alpha; print(alpha.VERSION)"


def address(port: int, user: str = "") -> str:
    return f"http://{user}127.0.0.1:{port}/simple"


ME = "me:hunter27x@"
PYTHON = "/p/bin/python3.11"


def test_what_credentials_let_in_is_not_for_callers_without_them(machine: Machine) -> None:
    """A private package is neither found among built environments nor in the cache, whoever asks without its password."""
    machine.wheel("alpha")
    with serve(machine.wheels) as port:
        private = machine.ensure("alpha", index={"UV_DEFAULT_INDEX": address(port, ME)})
        assert machine.python(private, VERSION) == "1"
        for user in ("", "me:guess@", "me@"):
            with pytest.raises(EnvironmentBuildError):
                machine.ensure("alpha", index={"UV_DEFAULT_INDEX": address(port, user)})
    for user in ("", "me:guess@"):
        with pytest.raises(EnvironmentBuildError):
            machine.ensure("alpha", index={"UV_DEFAULT_INDEX": address(port, user), "UV_OFFLINE": "1"})
    assert machine.ensure("alpha", index={"UV_DEFAULT_INDEX": address(port, ME), "UV_OFFLINE": "1"}) == private


def test_a_proxy_of_one_caller_chooses_nothing_for_another(machine: Machine) -> None:
    """A wheel that a proxy has put in the place of another is installed for callers with this proxy only."""
    machine.wheel("alpha")
    forged = machine.directory / "forged"
    forged.mkdir()
    machine.wheel("alpha", files={"forged.py": ""}).rename(forged / "alpha-1-py3-none-any.whl")
    machine.wheel("alpha")
    look = "import importlib.util; print(importlib.util.find_spec('forged') is not None)"
    with serve(machine.wheels, password="") as port, serve(forged, password="") as proxy:
        index = {"UV_DEFAULT_INDEX": address(port)}
        first = machine.ensure("alpha", index={**index, "http_proxy": f"http://127.0.0.1:{proxy}"})
        second = machine.ensure("alpha", index=index)
    assert machine.python(first, look) == "True"
    assert machine.python(second, look) == "False"


def test_certificates_of_one_caller_vouch_for_nothing_that_another_gets(
    atoll_home: Home, machine: Machine, tmp_path: Path
) -> None:
    """An index that a caller's own certificate vouches for is nobody else's, also where its package is built already."""
    openssl = find_tool("openssl") or pytest.skip("needs openssl")
    machine.wheel("alpha")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"]
    made += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    none = dict.fromkeys(INDEX_VARIABLES, "")
    wanted = ["env", "build", "-r", "alpha"]
    with serve(machine.wheels, password="", tls=(certificate, key)) as port:
        index = {**none, "UV_DEFAULT_INDEX": f"https://127.0.0.1:{port}/simple"}
        mine = atoll_home.atoll(*wanted, env={**index, "SSL_CERT_FILE": str(certificate)})
    assert len(mine.stdout.strip()) == 32
    assert atoll_home.atoll(*wanted, env={**index, "UV_OFFLINE": "1"}, check=False).returncode == 1


@pytest.mark.parametrize("way", ["certificates", "UV_INSECURE_HOST", "--trusted-host"])
def test_trust_of_one_caller_is_not_for_another(machine: Machine, way: str) -> None:
    """Environments that were fetched with other certificates, or with none checked, are found with the same trust only."""
    machine.wheel("alpha")
    (machine.directory / "own.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    more = {
        "certificates": {"SSL_CERT_FILE": str(machine.directory / "own.pem")},
        "UV_INSECURE_HOST": {"UV_INSECURE_HOST": "files.example"},
        "--trusted-host": {},
    }[way]
    entries = ["alpha", "--no-index", f"--find-links {machine.wheels}"]
    theirs = machine.spec(*entries, *(["--trusted-host files.example"] if way == "--trusted-host" else []), index=more)
    first, second = (recipe(machine, spec) for spec in (theirs, machine.spec(*entries, index={})))
    assert first.key != second.key
    assert cache_of(first) != cache_of(second) == ""


def recipe(machine: Machine, spec: EnvironmentSpec, *, nested: bool = False) -> Recipe:
    machine.store.prepare()
    return asyncio.run(machine.store._recipes.read(spec, nested=nested))


def cache_of(found: Recipe) -> str:
    return str(cast("Any", found).request.index.cache)


def test_the_key_tells_nothing_of_the_credentials(machine: Machine) -> None:
    """The same credentials give other keys on another machine, so that no list of guesses can be tried on a key."""
    spec = machine.spec("alpha", index={"UV_DEFAULT_INDEX": address(1, ME)})
    first = recipe(machine, spec).key
    secret = machine.home / "environments" / ".secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    machine.store = machine.new_store()
    assert recipe(machine, spec).key == first
    secret.unlink()
    machine.store = machine.new_store()
    assert recipe(machine, spec).key != first


def test_the_ordinary_way_keeps_its_keys() -> None:
    """Without proxies, credentials, certificates and unchecked hosts a key is what it was before these were told apart."""
    python = Interpreter(PYTHON, "3.11.7", "cpython", "cpython-311", "linux-x86_64", "/p", ())
    from atoll.environments.asked import index, key, requirements

    keys = []
    for entries, sent in (
        (["numpy"], {}),
        (["x", "--index-url https://a.example/s"], {"UV_INDEX": "https://b.example"}),
    ):
        parsed = requirements.parse(entries)
        facts = index.read(sent, parsed, str, str).facts
        keys.append(key.key("virtualenv", parsed, python, index=facts, contents={}))
    assert keys == ["90b8d38714a71abcf37eba305ba2d606", "2cbc2f21a5fa72e8eddab44d443b409f"]


# --- caches ---------------------------------------------------------------------------------------------------------


def test_archives_of_private_and_local_channels_have_a_cache_of_their_own(machine: Machine) -> None:
    """No channel gets a private or local archive out of a cache by naming its digest; a function's is thrown away."""
    pytest.importorskip("rattler", reason="needs the extra `conda`")
    made = {
        channel: cast("CondaRecipe", recipe(machine, EnvironmentSpec("conda", packages=("a",), channels=(channel,))))
        for channel in ("https://c.example/x", "https://me:pw@c.example/x", "https://c.example/t/tk-1/x", "/srv/c")
    }
    assert len({one.key for one in made.values()}) == 4
    assert [one.cache == "" for one in made.values()] == [True, False, False, False]
    assert len({one.cache for one in made.values()}) == 4
    spec = EnvironmentSpec("conda", packages=("a",), channels=("https://c.example/t/tk-1/x",))
    assert not cast("CondaRecipe", recipe(machine, spec, nested=True)).on_top.keeps_cache


def test_caches_are_bounded_and_those_in_use_stay(machine: Machine) -> None:
    """Of the caches of other ways the newest are kept, and one that a build uses is never removed."""
    machine.store.prepare()
    kept = machine.store._recipes._caches
    place = machine.home / "environments/.cache/fetched"

    async def use_all() -> None:
        async with kept.use("0" * 32):
            for number in range(1, caches.KEPT + 3):
                async with kept.use(f"{number:032x}"):
                    os.utime(place / f"{number:032x}", (number + 1e9, number + 1e9))
            os.utime(place / ("0" * 32), (1, 1))
            for path in place.iterdir():
                os.utime(path, (path.stat().st_mtime + 1e9,) * 2)  # recent, in the same order
            await kept.collect()
            assert len(os.listdir(place)) == caches.KEPT + 1
            assert (place / ("0" * 32) / "uv").is_dir()
        await kept.clear()

    asyncio.run(use_all())
    assert os.listdir(place) == []


def test_a_cache_of_an_earlier_version_serves_nobody(machine: Machine) -> None:
    """Versions that told no ways apart have filled one cache in all of them: it is removed."""
    old = machine.home / "environments/.cache/uv/wheels"
    old.mkdir(parents=True)
    machine.store.prepare()
    assert not old.exists()
    asyncio.run(machine.store._recipes.collect())
    assert os.listdir(machine.home / "environments/.cache/fetched") == []


def test_a_python_of_ones_own_list_is_not_for_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter whose digest is a caller's own claim is found by requests with the same list only."""

    async def missing(spec: EnvironmentSpec) -> Interpreter:
        raise EnvironmentBuildError("none", wanted="3.99")

    async def probe(path: str) -> Interpreter:
        return Interpreter(path, "3.99.1", "cpython", "", "", "", ())

    monkeypatch.setattr(interpreter, "find", missing)
    monkeypatch.setattr(interpreter, "probe", probe)
    machine.store.prepare()
    pythons = machine.store._recipes._pythons

    async def install(directory: Path, *_: Any) -> Interpreter | None:
        program = directory / "cpython-3.99.1-linux" / "bin" / "python3"
        program.parent.mkdir(parents=True)
        program.touch()
        return await pythons._installed(directory, "3.99")

    monkeypatch.setattr(pythons, "_install", install)
    spec = EnvironmentSpec(python_version="3.99", index=(("UV_PYTHON_DOWNLOADS_JSON_URL", "https://evil.example/l"),))
    mine = asyncio.run(pythons.find(spec, print))
    assert asyncio.run(pythons.find(spec, print, nested=True)) == mine
    other = dataclasses.replace(spec, index=())
    with pytest.raises(EnvironmentBuildError):
        asyncio.run(pythons.find(other, print, nested=True))


# --- functions that ask ---------------------------------------------------------------------------------------------

PROGRAM = """
    import sys
    from atoll import errors, isolated

    @isolated(requirements=["alpha"], network="host")
    def private():
        import alpha
        return alpha.VERSION

    @isolated(network="host")
    def outer():
        try:
            return private()
        except errors.EnvironmentBuildError as error:
            return "functions_use_credentials" in error.hint

    @isolated(requirements=["alpha"], network="host")
    def same():
        return private()

    if __name__ == "__main__":
        print(outer(), private(), outer(), same())
"""


def test_a_function_gets_nothing_that_only_its_programs_credentials_let_in(atoll_home: Home, machine: Machine) -> None:
    """Neither a build nor what its program has built, but its own environment."""
    machine.wheel("alpha")
    program = machine.directory / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    with serve(machine.wheels) as port:
        said = atoll_home.python(str(program), env={"UV_DEFAULT_INDEX": address(port, ME)}).stdout.split()
    assert said == ["True", "1", "True", "1"]


def test_the_owner_decides_whose_credentials_functions_use(tmp_path: Path) -> None:
    """By the setting for requests without addresses; a function's own environment, and only that, has its own always."""
    sent = (("HTTPS_PROXY", "http://u:pw@proxy:1"), ("UV_INDEX", "https://me:pw@a.example"), ("netrc", "machine a"))
    outer = EnvironmentSpec(requirements=("x",), interpreter=PYTHON, index=sent)

    def granted(spec: EnvironmentSpec, outer: EnvironmentSpec, *, allowed: bool = False) -> EnvironmentSpec:
        engine = SimpleNamespace(environment_of=lambda worker: outer)
        options = Settings(tmp_path, environments=EnvironmentsSettings(functions_use_credentials=allowed))
        services = cast("Any", SimpleNamespace(settings=options, engine=engine))
        return leasing.checked_environment(services, Caller("ann", "worker"), spec)

    bare = (("HTTPS_PROXY", "http://proxy:1"), ("UV_INDEX", "https://a.example"), (WITHHELD, "1"))
    assert granted(EnvironmentSpec(requirements=("x",)), outer) == outer
    child = granted(EnvironmentSpec(requirements=("y",)), outer)
    assert child.index == bare
    assert granted(EnvironmentSpec(requirements=("y",)), child) == child
    assert granted(EnvironmentSpec(requirements=("x",)), child).index == bare
    assert granted(EnvironmentSpec(requirements=("y",)), outer, allowed=True).index == sent
    for named in ("y @ https://b.example/y.whl", "--index-url https://b.example"):
        assert granted(EnvironmentSpec(requirements=("y", named)), outer, allowed=True).index == bare


def test_a_function_with_its_programs_credentials_runs_no_code_beside_them(machine: Machine) -> None:
    """Its request for its own environment is built from wheels only: a package's build could read the credentials."""
    machine.sdist("delta", "    note = 'ran'")
    spec = machine.spec(
        "delta", f"--find-links {machine.wheels}", index={"UV_DEFAULT_INDEX": "http://me:hunter27x@127.0.0.1:9/simple"}
    )
    spec = dataclasses.replace(spec, requirements=(*spec.requirements, "--no-index"))
    with pytest.raises(EnvironmentBuildError, match="code of packages never runs"):
        asyncio.run(machine.store.ensure(spec, nested=True))
    open_spec = dataclasses.replace(spec, index=without_credentials(spec.index))
    assert machine.python(asyncio.run(machine.store.ensure(open_spec, nested=True)), "import delta; print(delta.NOTE)")
