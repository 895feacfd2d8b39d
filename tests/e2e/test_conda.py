"""Conda environments with the real solver in the real sandbox, from channels in directories; no network is needed."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..channel import MINOR, LocalChannel
from ..conftest import Home

pytest.importorskip("rattler", reason="needs the extra `conda`")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="environments are built on Linux")


@pytest.fixture(scope="session")
def python_package() -> Iterator[Path]:
    """A package with this interpreter, made once."""
    directory = Path(tempfile.mkdtemp(prefix="atoll-python-"))
    directory.chmod(0o755)
    try:
        yield LocalChannel(directory / "channel").add_python()
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def channel(python_package: Path) -> Iterator[LocalChannel]:
    """A channel with Python in it, which the builder's identity can read."""
    directory = Path(tempfile.mkdtemp(prefix="atoll-channel-"))
    directory.chmod(0o755)
    old = os.umask(0o022)
    try:
        made = LocalChannel(directory / "main")
        made.add_python(python_package)
        yield made
    finally:
        os.umask(old)
        shutil.rmtree(directory)


class Programs:
    """Runs programs whose functions are of kind `conda`, all with one home."""

    def __init__(self, home: Home, channel: LocalChannel) -> None:
        self.home = home
        self.channel = channel

    def run(self, text: str, **options: object) -> str:
        """Run a program in which `conda` makes functions that know the channel only; return what it printed."""
        header = (
            "import functools, sys\nfrom atoll import errors, isolated, local\n"
            f"conda = functools.partial(isolated, 'conda', channels=[{str(self.channel.directory)!r}], keep_alive=0)\n"
        )
        path = self.home.path / "program.py"
        path.write_text(header + textwrap.dedent(text))
        return self.home.python(str(path), **options).stdout  # type: ignore[arg-type]


@pytest.fixture
def programs(atoll_home: Home, channel: LocalChannel) -> Programs:
    return Programs(atoll_home, channel)


def test_a_function_runs_among_its_packages(programs: Programs) -> None:
    """Packages with what they depend on, their scripts and the paths in them are right inside the sandbox."""
    programs.channel.package("alpha", depends=["python", "beta>=1"], scripts=["alpha = alpha:main"])
    programs.channel.package("beta", "1.5", depends=["python"])
    found = programs.run(
        """
        @conda(packages=["alpha"])
        def f(x):
            import os, subprocess, sys
            import alpha, beta
            said = [subprocess.run([name], capture_output=True, text=True).stdout for name in ("alpha", "where")]
            place = os.environ["CONDA_PREFIX"], sys.prefix, "VIRTUAL_ENV" in os.environ
            return x, alpha.VERSION, beta.VERSION, said, place

        print(f(7))
        print(f(8)[0])
        """
    )
    place = ("/opt/atoll/env", "/opt/atoll/env", False)
    assert found.splitlines() == [repr((7, "1", "1.5", ["alpha 1\n", "/opt/atoll/env\n"], place)), "8"]
    (environment,) = (programs.home.path / "environments").glob("*/env")
    assert list(environment.glob(f"lib/python{MINOR}/site-packages/__pycache__/alpha.*.pyc"))
    assert not list((programs.home.path / "environments/.cache/work").iterdir())
    assert re.findall(r"opt/atoll-\w+", (environment / "conda-meta/alpha-1-0.json").read_text()) == []


def test_what_goes_wrong_has_its_name_and_the_next_call_works(programs: Programs) -> None:
    """Packages that do not exist or conflict, channels that are not there, a file that is none: named, nothing stays."""
    programs.channel.package("alpha", depends=["python", "beta>=2"])
    programs.channel.package("beta", "1", depends=["python"])
    programs.channel.package("gamma", "1", depends=["python 2.7.*"])
    damaged = programs.channel.package("delta", depends=["python"])
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"changed")
    (programs.home.path / "broken.yml").write_text("dependencies:\n  - beta\n - alpha\n")
    found = programs.run(
        """
        def says(make):
            try:
                print("returned", make(lambda: 1)())
            except errors.EnvironmentBuildError as error:
                print(error.message.partition("`: ")[2] or error.message, "|", error.hint)

        says(conda(packages=["nonesuch"]))
        says(conda(packages=["beta>=7"]))
        says(conda(packages=["alpha"]))
        says(conda(packages=["gamma"]))
        says(conda(packages=["python=2.7"]))
        says(conda(packages=["beta >>= x"]))
        says(conda(packages=["delta"]))
        says(isolated("conda", packages=["beta"], channels=["/nonexistent"]))
        says(isolated("conda", packages=["beta"], channels=["http://127.0.0.1:9/x"]))
        says(conda(env_yml="broken.yml"))
        says(conda(packages=["beta"]))
        """
    ).splitlines()
    expected = [
        r"no package `nonesuch` in the channels \| check its name",
        r"no release of `beta >=7` in the channels",
        r"(no release of `beta >=2`|the packages conflict: .*beta)",
        r"(no release of `python 2\.7\.\*`|the packages conflict: .*python)",
        r"(no release of `python 2\.7\.\*`|the packages conflict: .*python)",
        r"a package or channel cannot be read: .*`?>>= ?x",
        r"delta-1-0\.tar\.bz2 has another SHA-256 digest",
        r"there is no channel at `/nonexistent`",
        r"cannot read a channel: .*127\.0\.0\.1:9/.*refused",
        r"cannot understand `.*/broken\.yml`, which `env_yml` names: line 3",
        "returned 1",
    ]
    assert len(found) == len(expected), found
    for line, pattern in zip(found, expected, strict=True):
        assert re.match(pattern, line), (line, pattern)
    work = programs.home.path / "environments/.cache/work"
    assert not list(work.iterdir())


def _wheel(directory: Path, name: str) -> None:
    info = f"{name}-1.dist-info"
    content = {
        f"{name}.py": "VERSION = 'wheel'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    with zipfile.ZipFile(directory / f"{name}-1-py3-none-any.whl", "w") as archive:
        for file, text in content.items():
            archive.writestr(file, text)


def test_a_file_with_pip_is_locked_upgraded_and_pruned(programs: Programs) -> None:
    """`env_yml` and pip on top; the versions stay until they are upgraded, and the lock is a file that pins them."""
    channel, home = programs.channel, programs.home
    channel.package("alpha", "1", depends=["python"])
    wheels = channel.directory.parent / "wheels"
    wheels.mkdir()
    _wheel(wheels, "ontop")
    file = home.path / "environment.yml"
    text = f"channels: [{channel.directory}]\ndependencies:\n  - alpha\n"
    file.write_text(text + f"  - pip:\n    - ontop\n    - --no-index\n    - --find-links {wheels}\n")
    program = f"""
        @isolated("conda", env_yml={str(file)!r}, keep_alive=0)
        def f():
            import alpha, ontop
            return alpha.VERSION, ontop.VERSION

        if __name__ == "__main__":
            print(*f())
        """
    assert programs.run(program) == "1 wheel\n"
    newer = channel.package("alpha", "2", depends=["python"])
    target = f"{home.path / 'program.py'}::f"
    assert home.atoll("env", "lock", target).stdout == (
        f"channels:\n  - file://{channel.directory}\ndependencies:\n"
        + "".join(
            f'  - "{name}=={version}=0[sha256={_digest(channel, name, version)}]"\n'
            for name, version in (("alpha", "1"), ("python", sys.version.split()[0].rstrip("+")))
        )
        + '  - pip:\n    - "ontop==1"\n'
    )
    (record,) = json.loads(home.atoll("env", "list", "--json").stdout)
    assert record["kind"] == "conda"
    assert record["python_version"].startswith(f"{MINOR}.")
    assert record["requirements"][:2] == ["alpha", f"channel file://{channel.directory}"]
    removed = json.loads(home.atoll("env", "prune", "--json").stdout)["removed"]
    assert [one["key"] for one in removed] == [record["key"]]
    assert programs.run(program) == "1 wheel\n"  # built again as it was
    assert json.loads(home.atoll("env", "upgrade", target, "--json").stdout)["changed"] is True
    assert programs.run(program) == "2 wheel\n"
    assert json.loads(home.atoll("env", "upgrade", target, "--json").stdout)["changed"] is False
    channel.remove(newer)
    file.write_text(home.atoll("env", "lock", target).stdout.replace("alpha==2", "alpha==3").partition("  - pip")[0])
    assert "no release of `alpha" in home.atoll("env", "build", target, check=False).stderr
    home.atoll("env", "prune", "--cache")
    for cache in ("conda", "fetched"):
        assert not list((home.path / "environments/.cache" / cache).iterdir())


def test_a_function_reads_an_env_yml_inside_its_sandbox(programs: Programs) -> None:
    """A call from inside names a file of its sandbox; its environment needs no YAML library for that."""
    found = programs.run(
        """
        @isolated(keep_alive=0)
        def outer(text):
            with open("/tmp/environment.yml", "w") as file:
                file.write(text)
            try:
                return isolated("conda", env_yml="/tmp/environment.yml")(lambda: 1)()
            except errors.EnvironmentBuildError as error:
                return f"{error.message} {'yaml' in sys.modules}"

        print(outer("channels: ['file:///etc']\\ndependencies: [alpha]"))
        print(outer("channels: ["))
        """
    ).splitlines()
    assert found[0] == "`file:///etc` names a place, which a call from inside a sandbox cannot do False"
    assert re.match("cannot understand `/tmp/environment.yml`, which `env_yml` names: line 1: ", found[1])


def _digest(channel: LocalChannel, name: str, version: str) -> str:
    (path,) = channel.directory.glob(f"*/{name}-{version}-0.tar.bz2")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_packages_cannot_reach_beyond_their_environment(programs: Programs) -> None:
    """Link scripts run where one environment is; files behind a link that a package planted stay there, too."""
    spy = "#!/bin/sh\n(ls /opt /opt/atoll; ls -d /data /root/.ssh; id -u) > $PREFIX/seen 2>&1\ntouch /opt/atoll-archives/x\n"
    programs.channel.package("linked", files={"bin/.linked-post-link.sh": spy}, depends=["python"], noarch=False)
    programs.channel.package("ladder", files={}, links={"share/up": "../.."}, noarch=False)
    programs.channel.package("climber", files={"share/up/climbed": "here"}, depends=["ladder"], noarch=False)
    script = "export FROM_A_PACKAGE=yes\nprintf hidden\n"
    programs.channel.package("active", files={"etc/conda/activate.d/active.sh": script}, noarch=False)
    found = programs.run(
        """
        @conda(packages=["linked", "climber", "active"])
        def f():
            import os
            return open("/opt/atoll/env/seen").read().split(), os.environ["FROM_A_PACKAGE"], os.listdir("/opt/atoll")

        seen, variable, beside = f()
        print(variable, sorted(beside), sorted({name for name in seen if name.startswith("atoll")}), "0" in seen)
        print("env" in seen, any(name in seen for name in ("/data", "/root/.ssh")))
        """
    ).splitlines()
    assert found == [
        "yes ['env', 'lib'] ['atoll', 'atoll-archives', 'atoll-rattler', 'atoll-request'] False",
        "True False",
    ]
    for path in programs.home.path.rglob("climbed"):
        assert path.resolve() == path
        assert "env" in path.parts
    archives = list((programs.home.path / "environments/.cache").rglob("conda/archives"))
    assert archives
    assert not any((path / "x").exists() for path in archives)


class _Guarded(http.server.SimpleHTTPRequestHandler):
    """Serves a channel below a token to who knows the password."""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(b"me:hunter27x").decode()
        if self.headers.get("Authorization") != expected or not self.path.startswith("/t/tk-13579x/"):
            self.send_error(401)
            return
        self.path = self.path.removeprefix("/t/tk-13579x")
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_credentials_of_a_channel_are_used_and_kept_nowhere(programs: Programs) -> None:
    """Password and token of a channel's address let in, and are in no file, log or message; without them it says 401."""
    programs.channel.package("alpha", depends=["python"])
    handler = functools.partial(_Guarded, directory=str(programs.channel.directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        port = server.server_address[1]
        done = programs.run(
            f"""
            import os
            word = os.environ["CHANNEL_PASSWORD"]
            address = f"http://me:{{word}}@127.0.0.1:{port}/t/tk-" + "13579x/"

            def f():
                import alpha
                return alpha.VERSION

            private = isolated("conda", packages=["alpha"], channels=[address], keep_alive=0)(f)
            print(private())
            try:
                private.on(channels=["http://127.0.0.1:{port}/other"])()
            except errors.EnvironmentBuildError as error:
                print(error.message)

            @isolated("conda", packages=["alpha"], channels=[address], keep_alive=0)
            def outer():
                try:
                    return private.on(channels=["file:///etc"])()
                except errors.EnvironmentBuildError as error:
                    return error.message

            print(outer())
            """,
            env={"CHANNEL_PASSWORD": "hunter27x"},
        )
    finally:
        server.shutdown()
        server.server_close()
    lines = done.splitlines()
    assert lines[0] == "1"
    assert "401 Unauthorized" in lines[1]
    assert "`file:///etc` names a place, which a call from inside a sandbox cannot do" in lines[2]
    for path in programs.home.path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert b"hunter27x" not in content, path
            assert b"tk-13579x" not in content, path
