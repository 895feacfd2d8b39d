"""Conda environments with the real solver in the real sandbox, from channels in directories; no network is needed."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import textwrap
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
