"""Environments from a project's own files, in real programs; packages are made here, and no network is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Home

pytestmark = [
    pytest.mark.as_user,
    pytest.mark.skipif(sys.platform != "linux", reason="environments are built on Linux"),
]


def wheel(directory: Path, name: str, version: str) -> None:
    """Make a wheel of one module with a version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


PROGRAM = """
import sys
from atoll import isolated

def versions(*names):
    import importlib
    return [importlib.import_module(name).VERSION for name in names]

def call(requirements, *names):
    print(*isolated(requirements=requirements)(versions)(*names))

if __name__ == "__main__":
    from pathlib import Path
    here = Path(__file__).parent
    call("requirements.txt", "alpha")
    (here / "limits.txt").write_text("alpha<2\\n")
    call("requirements.txt", "alpha")
    call("pyproject.toml --extra more", "alpha", "beta")
    call(["--no-index", "-f wheels", "-r pyproject.toml", "--group test"], "beta")
    call(["--no-index", "--find-links", "wheels", "alpha"], "alpha")
    call(["-r", "pylock.toml", "--no-index", "-f", "wheels"], "beta")

    @isolated(requirements="requirements.txt")
    def inner():
        return versions("alpha")

    @isolated
    def outer():
        return inner()

    try:
        outer()
    except Exception as error:  # the contents travel; a function may not name the machine's directories
        print("names a local path" in str(error) and "--find-links" in str(error))
    try:
        call(["pyproject.tml"], "alpha")
    except Exception as error:
        print(type(error).__name__)
"""


def test_a_project_names_its_own_files(atoll_home: Home, tmp_path: Path) -> None:
    """Files are found beside the program from any working directory, seen by the builder, and read again at each call."""
    directory = tmp_path / "a project"
    (directory / "wheels").mkdir(parents=True)
    for name, version in (("alpha", "1"), ("alpha", "2"), ("beta", "1")):
        wheel(directory / "wheels", name, version)
    (directory / "requirements.txt").write_text("--no-index\n--find-links wheels\n-c limits.txt\nalpha  # newest\n")
    (directory / "limits.txt").write_text("")
    (directory / "pyproject.toml").write_text(
        '[project]\nname = "own"\ndependencies = ["alpha==2"]\n[project.optional-dependencies]\nmore = ["beta"]\n'
        '[dependency-groups]\ntest = ["beta"]\n[tool.uv]\nfind-links = ["wheels"]\n'
    )
    (directory / "pylock.toml").write_text(
        'lock-version = "1.0"\ncreated-by = "test"\n[[packages]]\nname = "beta"\nversion = "1"\n'
    )
    program = directory / "program.py"
    program.write_text(PROGRAM)
    done = atoll_home.python(str(program), cwd=tmp_path, env={"UV_OFFLINE": "1"})
    assert done.stdout.splitlines() == ["2", "1", "2 1", "1", "2", "1", "True", "EnvironmentBuildError"]


def test_a_repository_of_this_machine_is_installed_by_its_commit(atoll_home: Home, tmp_path: Path) -> None:
    """A relative `git+file:` address works, a revision is kept to, and a new commit gives a new environment."""
    repository = tmp_path / "repo"
    git = ["git", "-C", str(repository), "-c", "user.email=a@example.org", "-c", "user.name=a"]
    (repository / "backend").mkdir(parents=True)
    (repository / "pyproject.toml").write_text(
        '[project]\nname = "gitpkg"\nversion = "1"\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["backend"]\n'
    )
    (repository / "backend" / "backend.py").write_text(BACKEND)

    def commit(version: str) -> None:
        (repository / "version.txt").write_text(version)
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-qm", version], check=True)

    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    commit("1")
    subprocess.run([*git, "tag", "first"], check=True)
    program = tmp_path / "program.py"
    program.write_text(
        "from atoll import isolated\ndef version():\n    import gitpkg\n    return gitpkg.VERSION\n"
        "import sys\nprint(isolated(requirements=[sys.argv[1]])(version)())\n"
    )

    def run(requirement: str) -> str:
        return atoll_home.python(str(program), requirement, cwd=tmp_path, env={"UV_OFFLINE": "1"}).stdout.strip()

    assert run("git+file:./repo") == "1"
    commit("2")
    assert run("git+file:./repo") == "2"
    assert run(f"gitpkg @ git+file://{repository}@first") == "1"
    again = atoll_home.python(str(program), "git+./repo", cwd=tmp_path, env={"UV_OFFLINE": "1"})
    assert again.stdout.strip() == "2"
    assert "Building" not in again.stderr


BACKEND = """
import os, zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    version = open("version.txt").read()
    files = {
        "gitpkg.py": f"VERSION = {version!r}\\n",
        "gitpkg-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: gitpkg\\nVersion: 1\\n",
        "gitpkg-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: a\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files["gitpkg-1.dist-info/RECORD"] = "".join(f"{path},,\\n" for path in [*files, "gitpkg-1.dist-info/RECORD"])
    with zipfile.ZipFile(os.path.join(directory, "gitpkg-1-py3-none-any.whl"), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return "gitpkg-1-py3-none-any.whl"
"""


def test_the_command_line_takes_files(atoll_home: Home, tmp_path: Path) -> None:
    """`atoll env build -r requirements.txt` reads the file of the working directory; another one is named."""
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "alpha", "1")
    (tmp_path / "requirements.txt").write_text("--no-index\n-f wheels\nalpha\n")
    done = atoll_home.atoll("env", "lock", "-r", "requirements.txt", cwd=tmp_path, env={"UV_OFFLINE": "1"})
    assert done.stdout.startswith("alpha==1")
    failed = atoll_home.atoll("env", "build", "-r", "other.txt", cwd=tmp_path, check=False)
    assert failed.returncode == 1
    assert f"there is no file `{os.path.realpath(tmp_path)}/other.txt`" in failed.stderr


def test_an_edit_of_a_local_path_is_seen_by_the_same_program(atoll_home: Home, tmp_path: Path) -> None:
    """A package of this machine is keyed by its content: an edited one is built anew for the next call."""
    place = tmp_path / "own"
    (place / "backend").mkdir(parents=True)
    (place / "pyproject.toml").write_text(
        '[project]\nname = "gitpkg"\nversion = "1"\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["backend"]\n'
    )
    (place / "backend" / "backend.py").write_text(BACKEND)
    (place / "version.txt").write_text("1")
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib\nfrom atoll import isolated\nfrom atoll.sdk.requirements import local_stamps\n"
        "local_stamps.LOOK_SECONDS = 0.0\n"
        "@isolated(requirements=['./own'])\ndef version():\n    import gitpkg\n    return gitpkg.VERSION\n"
        "print(version(), version())\npathlib.Path('own/version.txt').write_text('2')\nprint(version())\n"
    )
    done = atoll_home.python(str(program), cwd=tmp_path, env={"UV_OFFLINE": "1"})
    assert done.stdout.split() == ["1", "1", "2"]
