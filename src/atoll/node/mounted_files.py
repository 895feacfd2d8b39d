"""What is mounted at `/opt/atoll/lib`: this version's own copy of the package and of cloudpickle.

A copy for each version, named by its contents, so that an upgrade of the package changes nothing that runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.machinery
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from atoll import __version__
from atoll.process import Child

LAUNCHER = "from atoll.agent.main import main\n\nmain()\n"
METADATA = {
    f"atoll-{__version__}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: atoll\nVersion: {__version__}\n".encode(),
    f"atoll-{__version__}.dist-info/entry_points.txt": b"[fsspec.specs]\natoll = atoll.fsspec:AtollFileSystem\n",
}
"""By which fsspec, where an environment has it, finds `atoll://`."""
STAGE_SECONDS = 3600.0
"""For how long what is being made is left alone."""

CLOUDPICKLE = "_atoll_cloudpickle.py"
YAML = "_atoll_yaml"
_PACKAGES = ("atoll", "fal_serverless")
_COLD_PATH = ("atoll/__init__.py", "atoll/errors.py", "atoll/agent/", "atoll/payload/", "atoll/wire/", CLOUDPICKLE)
"""What an agent imports before it can serve: compiled before the first use."""


def _sources() -> dict[str, Path]:
    root = Path(__file__).parents[2]
    found = {
        str(path.relative_to(root)): path
        for package in _PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and path.suffix in (".py", ".typed")
    }
    spec = importlib.machinery.PathFinder.find_spec("cloudpickle")  # found, and not imported: see invariant 1
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("cloudpickle is not installed")
    found[CLOUDPICKLE] = Path(spec.origin).with_name("cloudpickle.py")
    spec = importlib.machinery.PathFinder.find_spec("yaml")  # for an `env_yml` that a function names
    if spec is not None and spec.origin is not None:
        for path in Path(spec.origin).parent.glob("*.py"):
            if path.name != "cyaml.py":  # which needs a compiled module
                found[f"{YAML}/{path.name}"] = path
    return found


def prepare(directory: Path) -> Path:
    """Return the directory of this version's files below `directory`, complete; made if it is not there."""
    sources = _sources()
    digest = hashlib.blake2b(LAUNCHER.encode() + repr(METADATA).encode(), digest_size=8)
    contents = {}
    for name, path in sorted(sources.items()):
        contents[name] = path.read_bytes()
        digest.update(name.encode() + b"\0" + len(contents[name]).to_bytes(8, "big") + contents[name])
    target = directory / f"{__version__}-{digest.hexdigest()}"
    contents["_atoll_agent.py"] = LAUNCHER.encode()
    contents.update(METADATA)
    if _whole(target, contents):
        return target
    directory.mkdir(mode=0o755, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=directory))
    try:
        for name, content in contents.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if name.startswith(_COLD_PATH):
                _compile(path, f"/opt/atoll/lib/{name}")
        for path in [stage, *stage.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists() and not _whole(target, contents):  # damaged: what runs keeps it, what comes does not
            os.rename(target, stage.with_name(f"{stage.name}-damaged"))
            shutil.rmtree(stage.with_name(f"{stage.name}-damaged"), ignore_errors=True)
        with contextlib.suppress(OSError):  # another daemon may have been first
            os.rename(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target


def hold(directory: Path) -> tuple[Path, int]:
    """Return what `prepare` does, and a descriptor that keeps it from `remove_unused` while it is open."""
    while True:
        target = prepare(directory)
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(target)):
                return target, descriptor
        os.close(descriptor)  # somebody removed it before it was held


def used_by_others(own: Path) -> bool:
    """Whether a daemon of another version is alive: one that drains still has sandboxes."""
    for path in own.parent.iterdir():
        if path == own or path.name.startswith((".", "native-")):  # what daemons of different versions may share
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def remove_unused(directory: Path) -> None:
    """Remove the files of versions that no daemon holds: of other versions, and what was left half made."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") and time.time() - path.stat().st_mtime < STAGE_SECONDS:
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = directory / f".gone-{path.name.lstrip('.')}-{os.getpid()}"
            os.rename(path, gone)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
        shutil.rmtree(gone, ignore_errors=True)


def _whole(directory: Path, contents: dict[str, bytes]) -> bool:
    """Whether a directory holds these files, undamaged."""
    try:
        return all((directory / name).read_bytes() == content for name, content in contents.items())
    except OSError:
        return False


def _compile(path: Path, shown_as: str) -> None:
    import py_compile

    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(path), dfile=shown_as, doraise=True, invalidation_mode=mode)


async def compile_rest(directory: Path) -> None:
    """Compile what `prepare` left, in a process of its own."""
    code = (
        "import compileall, sys; compileall.compile_dir(sys.argv[1], ddir='/opt/atoll/lib', quiet=2, "
        "invalidation_mode=__import__('py_compile').PycInvalidationMode.UNCHECKED_HASH)"
    )
    marker = directory / ".compiled"
    if not marker.exists():
        child = Child([sys.executable, "-I", "-S", "-c", code, str(directory)], env={})
        if await child.wait() == 0:
            with contextlib.suppress(OSError):
                marker.touch()
