"""Which Python an environment is made for."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import sysconfig
from pathlib import Path

import pytest

from atoll.environments.built import interpreter
from atoll.environments.built.interpreter import binds, find, fits, probe
from atoll.errors import EnvironmentBuildError, StateUnusable
from atoll.model.specs import EnvironmentSpec

BASE = os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@pytest.mark.parametrize(
    ("wanted", "yes", "no"),
    [
        ("", ["3.8.1"], []),
        ("3", ["3.8.1", "3.14.0"], ["2.7.18"]),
        ("3.1", ["3.1.4"], ["3.11.7", "3.10.0"]),
        ("3.11", ["3.11.0", "3.11.7", "3.11.0rc1"], ["3.12.0", "3.1.1"]),
        ("3.11.*", ["3.11.7"], ["3.12.0"]),
        ("3.11.7", ["3.11.7"], ["3.11.8"]),
        (">=3.10", ["3.10.0", "3.13.1"], ["3.9.9"]),
        (">=3.10,<3.12", ["3.11.7"], ["3.12.0"]),
        ("~=3.11", ["3.12.0"], ["3.10.0", "4.0.0"]),
    ],
)
def test_versions_fit_what_is_asked_for(wanted: str, yes: list[str], no: list[str]) -> None:
    """A version fits its own prefixes and the specifiers that hold it."""
    assert all(fits(version, wanted) for version in yes)
    assert not any(fits(version, wanted) for version in no)


@pytest.mark.parametrize("wanted", ["three", "3.x", ">=three", "3.11; rm"])
def test_what_is_no_version_is_named(wanted: str) -> None:
    """A word that is no version is an error of the caller's."""
    with pytest.raises(EnvironmentBuildError, match="is not a version"):
        fits("3.11.7", wanted)


def test_the_callers_interpreter_is_used_when_it_fits() -> None:
    """The caller's own interpreter comes first, with its facts."""
    minor = "{}.{}".format(*sys.version_info)
    found = asyncio.run(find(EnvironmentSpec(interpreter=BASE, python_version=minor)))
    assert found.executable == BASE
    assert found.version == ".".join(str(part) for part in sys.version_info[:3])
    assert found.abi == sysconfig.get_config_var("SOABI")
    assert found.minor == minor


def test_a_link_to_an_interpreter_is_the_interpreter(tmp_path: Path) -> None:
    """A chain of links, as pyenv and virtual environments have them, leads to the same facts."""
    (tmp_path / "python3").symlink_to(BASE)
    (tmp_path / "python").symlink_to("python3")

    async def both() -> bool:
        return await probe(str(tmp_path / "python")) == await probe(BASE)

    assert asyncio.run(both())


def test_an_interpreter_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts are kept as long as the file is the same."""

    async def twice() -> None:
        await probe(BASE)

        async def refuse(executable: str) -> dict[str, object]:
            raise AssertionError(executable)

        monkeypatch.setattr(interpreter, "_ask", refuse)
        await probe(BASE)

    asyncio.run(twice())


def test_a_version_that_is_not_here_is_said_with_those_that_are() -> None:
    """The error names what was asked for and what the machine has."""
    with pytest.raises(EnvironmentBuildError) as caught:
        asyncio.run(find(EnvironmentSpec(interpreter=BASE, python_version="3.99")))
    assert "3.99" in str(caught.value)
    assert ".".join(str(part) for part in sys.version_info[:3]) in caught.value.details["found"]
    assert "uv python install 3.99" in caught.value.hint


@pytest.mark.parametrize("content", [None, "#!/bin/sh\nexit 0\n", "#!/bin/sh\necho no\nexit 3\n"])
def test_what_is_no_python_is_named(tmp_path: Path, content: str | None) -> None:
    """A path without a program, or with another one, is an error of the caller's."""
    path = tmp_path / "python"
    if content is not None:
        path.write_text(content)
        path.chmod(0o755)
    with pytest.raises(EnvironmentBuildError, match="python"):
        asyncio.run(probe(str(path)))


def _installation(prefix: Path) -> str:
    for directory in ("bin", "lib/python3.11", "include/python3.11", "private"):
        (prefix / directory).mkdir(parents=True)
    for file in ("bin/python3.11", "lib/libpython3.11.so.1.0", "lib/libssl.so.3"):
        (prefix / file).write_text("")
    return str(prefix / "bin/python3.11")


def test_an_installation_of_its_own_is_shown_whole(tmp_path: Path) -> None:
    """A prefix that holds only Python is one bind at its own path."""
    executable = _installation(tmp_path / "cpython-3.11")
    (bind,) = binds(executable, str(tmp_path / "cpython-3.11"), "3.11.7", [executable])
    assert bind.source == bind.target == str(tmp_path / "cpython-3.11")
    assert not bind.writable


@pytest.mark.parametrize("place", [".local", "home"])
def test_a_shared_prefix_is_shown_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """From a prefix that holds other things, too, only the interpreter's own files are shown."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prefix = tmp_path / place
    executable = _installation(prefix)
    shown = {bind.source for bind in binds(executable, str(prefix), "3.11.7", [executable])}
    assert shown == {
        str(prefix / part)
        for part in ("bin/python3.11", "lib/python3.11", "include/python3.11", "lib/libpython3.11.so.1.0")
    }


def test_libraries_from_elsewhere_are_shown_and_the_systems_are_not(tmp_path: Path) -> None:
    """What the process maps beside its prefix is bound; `/usr` is in every sandbox anyway."""
    library = tmp_path / "elsewhere" / "libpython3.11.so.1.0"
    library.parent.mkdir()
    library.write_text("")
    shown = binds("/usr/bin/python3.11", "/usr", "3.11.2", [str(library), "/usr/lib/libc.so.6", "/dev/zero"])
    assert [bind.source for bind in shown] == [str(library)]


def test_a_machine_that_is_out_of_descriptors_is_said(tmp_path: Path) -> None:
    """Where no process can be started for want of descriptors, the error is that and not the interpreter's."""
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def starved() -> None:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(opened) + 1, hard))
        try:
            await probe(str(link))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in opened:
                os.close(descriptor)

    with pytest.raises(StateUnusable, match="too many open files") as caught:
        asyncio.run(starved())
    assert "ulimit -n" in caught.value.hint
    assert asyncio.run(probe(str(link))).version


def test_a_program_that_may_not_be_started_is_said(tmp_path: Path) -> None:
    """The system's own reason is in the message."""
    path = tmp_path / "python"
    path.write_text("")
    with pytest.raises(EnvironmentBuildError, match="cannot be started: permission denied"):
        asyncio.run(probe(str(path)))
