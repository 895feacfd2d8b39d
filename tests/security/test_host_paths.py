"""Attacks by paths: a client that names files, or a Python, must not have them opened or run with more rights than its own,
and nobody gets what the daemon's own configuration lets in.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll.daemon import leasing
from atoll.daemon.leasing import Caller, owner
from atoll.daemon.main import Daemon
from atoll.daemon.services import Services
from atoll.errors import AtollError, EnvironmentBuildError
from atoll.host import index_settings
from atoll.model.mounts import Bind
from atoll.model.specs import EnvironmentSpec, LeaseSpec
from atoll.process import Completed
from atoll.settings import Settings
from atoll.wire.async_channel import AsyncChannel
from tests.conftest import Home
from tests.environments import BASE, Machine, serve

pytestmark = [
    pytest.mark.as_user,
    pytest.mark.skipif(sys.platform != "linux", reason="environments are built on Linux"),
]
PLAIN_UID = 54322


@pytest.mark.parametrize("way", [".netrc", "NETRC", "uv.toml", "UV_CONFIG_FILE", "pip.conf"])
def test_no_file_that_a_client_names_or_that_the_daemon_has_lets_in(machine: Machine, way: str) -> None:
    """The daemon opens neither its own netrc, `uv.toml` and `pip.conf` for a client's build, nor one that a client names."""
    machine.wheel("alpha")
    user = machine.directory / "user"
    with serve(machine.wheels) as port:
        open_address, address = f"http://127.0.0.1:{port}/simple", f"http://me:hunter27x@127.0.0.1:{port}/simple"
        texts = {
            "netrc": "machine 127.0.0.1 login me password hunter27x\n",
            "uv.toml": f'[[index]]\nurl = "{address}"\ndefault = true\n',
            "pip.conf": f"[global]\nfind-links = {machine.wheels}\n",
        }
        places = {".netrc": user / ".netrc", "uv.toml": user / ".config/uv/uv.toml"}
        places["pip.conf"] = user / ".config/pip/pip.conf"
        place = places.get(way, user / "named")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(texts[{".netrc": "netrc", "NETRC": "netrc", "UV_CONFIG_FILE": "uv.toml"}.get(way, way)])
        sent = {"UV_DEFAULT_INDEX": open_address, **({way: str(place)} if way.isupper() else {})}
        entries = ("alpha", "--no-index") if way == "pip.conf" else ("alpha",)
        spec = EnvironmentSpec("virtualenv", entries, "", BASE, tuple(sorted(sent.items())))
        with pytest.raises(EnvironmentBuildError):
            asyncio.run(machine.store.ensure(spec, machine.lines.append))


SPY = """
    for place, _, names in os.walk("/opt"):
        note += "".join(f" {name}" for name in names if "certificates" in place or "certificates" in name)
    note += os.environ.get("SSL_CERT_FILE", "")
"""


def test_no_certificates_that_a_client_names_are_opened(machine: Machine) -> None:
    """A path as the value of a variable of certificates shows the build nothing of the machine."""
    private = machine.directory / "private"
    private.mkdir()
    (private / "key").write_text("secret")
    machine.sdist("delta", SPY)
    paths = {"SSL_CERT_FILE": private / "key", "REQUESTS_CA_BUNDLE": private / "key", "SSL_CERT_DIR": private}
    sent = tuple((name, str(path)) for name, path in paths.items())
    spec = EnvironmentSpec("virtualenv", machine.spec("delta").requirements, "", BASE, sent)
    environment = asyncio.run(machine.store.ensure(spec, machine.lines.append))
    assert machine.python(environment, "import delta; print(delta.NOTE)") == ""


def test_a_client_opens_its_files_with_its_own_rights(machine: Machine) -> None:
    """Contents that only another user may read are sent by nobody else: root's files, where root drops to a user."""
    secret = machine.directory / "user" / ".netrc"
    secret.write_text("machine a.example password hunter27x\n")
    secret.chmod(0o600)
    if os.geteuid() != 0:
        secret.chmod(0)
    (machine.directory / "user").chmod(0o755)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresuid(PLAIN_UID, PLAIN_UID, PLAIN_UID)
            sent = dict(index_settings.collect(["x @ https://a.example/x.whl"]))
            os.write(write, b"yes" if "netrc" in sent else b"no")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read() == "no"
    os.waitpid(pid, 0)


def test_no_installation_writes_a_python_that_the_daemon_runs(machine: Machine) -> None:
    """The sandbox with the shared caches shows the installed interpreters read-only."""
    machine.wheel("alpha")
    pythons = machine.home / "environments/.cache/pythons"
    pythons.mkdir(parents=True)
    pythons.chmod(0o777)
    tried: list[str] = []
    inner = machine.confinement

    async def confinement(command: Sequence[str], *, binds: Sequence[Bind], **options: Any) -> Completed:
        if any(bind.writable and bind.target == "/opt/atoll-workshop" for bind in binds):
            attack = ["/bin/sh", "-c", "cd /opt/atoll-workshop && touch uv/x && touch pythons/x"]
            tried.append((await inner(attack, binds=binds, environment={"PATH": "/usr/bin:/bin"})).output)
        return await inner(command, binds=binds, **options)

    machine.confinement = confinement  # type: ignore[method-assign]
    machine.store = machine.new_store()
    machine.ensure("alpha")
    assert ["Read-only file system" in output for output in tried] == [True]
    assert not list(pythons.iterdir())


# --- callers of other uids ------------------------------------------------------------------------------------------

ANN = Caller("ann")


def checked(spec: EnvironmentSpec, caller: Caller = ANN) -> EnvironmentSpec:
    return leasing.checked(cast("Any", None), caller, LeaseSpec(spec, network="none")).environment


def test_no_interpreter_that_another_user_names_is_run(tmp_path: Path) -> None:
    """Who has another uid than the daemon gets a Python of the machine, and none of a list of their own."""
    marker, program = tmp_path / "ran", tmp_path / "python3"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)
    listed = ("UV_PYTHON_DOWNLOADS_JSON_URL", "https://a.example/list.json")
    spec = EnvironmentSpec(interpreter=str(program), index=(listed,))
    assert checked(spec) == EnvironmentSpec()
    assert checked(spec, owner("ann")).interpreter == str(program)
    assert not marker.exists()


@pytest.mark.parametrize(
    "spec",
    [
        EnvironmentSpec(requirements=("/root/package",)),
        EnvironmentSpec(requirements=("x @ file:///root/x-1-py3-none-any.whl",)),
        EnvironmentSpec(requirements=("x", "--find-links /root/wheels")),
        EnvironmentSpec(requirements=("x", "--index-url file:///root/mirror")),
        EnvironmentSpec("conda", channels=("/root/channel",)),
        EnvironmentSpec("conda", packages=("x",), pip=("/root/package",)),
        EnvironmentSpec(requirements=("x",), index=(("UV_FIND_LINKS", "/root/wheels"),)),
        EnvironmentSpec(requirements=("x",), index=(("PIP_INDEX_URL", "file:///root/mirror"),)),
        EnvironmentSpec(requirements=("x",), index=(("uv.toml", 'find-links = ["/root/wheels"]'),)),
        EnvironmentSpec(requirements=("x",), index=(("uv.toml", '[[index]]\nurl = "file:///root/mirror"'),)),
    ],
)
def test_no_path_that_another_user_names_is_opened(spec: EnvironmentSpec) -> None:
    """Local packages, indexes and channels are refused before anything is looked at."""
    with pytest.raises(AtollError, match="/root/"):
        checked(spec)
    assert checked(spec, owner("ann")) == spec


def test_another_users_settings_choose_packages_only() -> None:
    """Indexes of the network, credentials and contents of files come along; settings of uv that name paths do not."""
    text = 'index-url = "https://a.example"\ncache-dir = "/opt/atoll-workshop/uv"\n[pip]\ntarget = "/opt"\n'
    index = (("UV_INDEX", "https://me:pw@b.example"), ("netrc", "machine a.example password x\n"), ("uv.toml", text))
    found = checked(EnvironmentSpec(requirements=("x",), index=index)).index
    assert found[:2] == index[:2]
    assert "atoll-workshop" not in found[2][1]
    assert "target" not in found[2][1]


def connect_as(uid: int, path: str) -> None:
    """Connect to a socket as a process of this uid, which then ends."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
            socket.socket(socket.AF_UNIX).connect(path)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.root
@pytest.mark.parametrize(("uid", "count"), [(PLAIN_UID, 0), (0, 1)])
def test_a_client_of_another_uid_is_refused_at_every_door(
    atoll_home: Home, monkeypatch: pytest.MonkeyPatch, uid: int, count: int
) -> None:
    """Also where the daemon is about to leave and takes one more client."""
    served: list[AsyncChannel] = []
    monkeypatch.setattr(Daemon, "_serve", lambda self, channel, caller: served.append(channel))
    monkeypatch.setattr(Daemon, "_owns_path", lambda self: False)
    options = Settings(atoll_home.path)
    options.run_directory.mkdir()
    daemon = Daemon.__new__(Daemon)
    daemon._services = cast("Services", SimpleNamespace(detached=SimpleNamespace(busy=False)))
    daemon._settings, daemon._caller, daemon._connections = options, owner("local"), set()

    async def leave() -> bool:
        return daemon._can_leave()

    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        os.chmod(directory, 0o755)
        listener.bind(f"{directory}/s")
        os.chmod(f"{directory}/s", 0o666)
        listener.listen()
        listener.setblocking(False)
        daemon._listener = listener
        connect_as(uid, f"{directory}/s")
        assert not asyncio.run(leave())
    assert len(served) == count
    for channel in served:
        channel._channel.close()
