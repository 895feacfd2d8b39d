"""Directories of this version's files that sandboxes mount: the library, and compiled packages for storage peers.

Each is named by its contents or versions and is complete from its rename on, so that an upgrade changes nothing that
runs. A daemon holds a shared lock on the directories in use; `remove_unused` removes the others.

The compiled packages (digests, chunks, compression) are copied out of the daemon's own environment, which other users
may not be able to enter. Functions never see them. A peer does without a missing or unfit package.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll import __version__
from atoll.blake2 import blake2b
from atoll.process import Child

LIBRARY = "/opt/atoll/lib"
NATIVE = "/opt/atoll/native"
LAUNCHER = f"""
import sys

if sys.path[:1] != ["{LIBRARY}"]:  # with `PYTHONSAFEPATH` it is not there
    sys.path.insert(0, "{LIBRARY}")

from atoll.agent.main import main

main()
"""
METADATA = {
    f"atoll-{__version__}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: atoll\nVersion: {__version__}\n".encode(),
    f"atoll-{__version__}.dist-info/entry_points.txt": b"[fsspec.specs]\natoll = atoll.fsspec:AtollFileSystem\n",
}
"""Lets the fsspec of an environment find `atoll://`."""
STAGE_SECONDS = 3600.0
"""An unfinished directory younger than this may belong to a daemon that still fills it."""

CLOUDPICKLE = "_atoll_cloudpickle.py"
YAML = "_atoll_yaml"
_PACKAGES = ("atoll", "fal_serverless")
_NEVER_MOUNTED = ("atoll/server/",)
"""Parts that no sandbox has a use for."""
_COLD_PATH = ("atoll/__init__.py", "atoll/errors.py", "atoll/agent/", "atoll/payload/", "atoll/wire/", CLOUDPICKLE)
"""Imported by an agent before it can serve, and so compiled before the first use."""

NATIVE_PACKAGES = ("blake3", "zstandard", "pyfastcdc", "typing_extensions")  # the last is imported by pyfastcdc
_LEFT_OUT = ("_cffi.",)


def _sources() -> dict[str, Path]:
    root = Path(__file__).parents[2]
    found = {
        name: path
        for package in _PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in (".py", ".typed")
        and not (name := str(path.relative_to(root))).startswith(_NEVER_MOUNTED)
        and path.is_file()
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


def _native_sources() -> dict[str, Path]:
    found = {}
    for package in NATIVE_PACKAGES:
        spec = importlib.machinery.PathFinder.find_spec(package)  # found, and not imported
        if spec is None or spec.origin is None:
            continue
        if not spec.submodule_search_locations:  # a module of one file
            found[Path(spec.origin).name] = Path(spec.origin)
            continue
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in root.rglob("*"):
            if path.is_file() and path.suffix in (".py", ".so") and not any(text in path.name for text in _LEFT_OUT):
                found[str(path.relative_to(root.parent))] = path
    return found


def prepare(directory: Path) -> Path:
    """Return the directory of this version's library below `directory`, complete; made if it is missing."""
    digest = blake2b(LAUNCHER.encode() + repr(METADATA).encode(), digest_size=8)
    contents = {}
    for name, path in sorted(_sources().items()):
        contents[name] = path.read_bytes()
        digest.update(name.encode() + b"\0" + len(contents[name]).to_bytes(8, "big") + contents[name])
    contents["_atoll_agent.py"] = LAUNCHER.encode()
    contents.update(METADATA)

    def whole(target: Path) -> bool:
        return all((target / name).read_bytes() == content for name, content in contents.items())

    def fill(stage: Path) -> None:
        for name, content in contents.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_bytes(content)
            if name.startswith(_COLD_PATH):
                _compile(stage / name, f"{LIBRARY}/{name}")

    return _prepare(directory / f"{__version__}-{digest.hexdigest()}", whole, fill)


def prepare_native(directory: Path) -> Path:
    """Return the directory of the compiled packages below `directory`, complete; made if it is missing."""
    files = _native_sources()
    digest = blake2b(digest_size=8)
    for name, path in sorted(files.items()):
        info = path.stat()
        digest.update(f"{name}\0{info.st_size}\0{info.st_mtime_ns}\0".encode())

    def whole(target: Path) -> bool:
        return target.is_dir() and all(
            (target / name).stat().st_size == path.stat().st_size for name, path in files.items()
        )

    def fill(stage: Path) -> None:
        for name, path in files.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, stage / name)

    return _prepare(directory / f"native-{digest.hexdigest()}", whole, fill)


def _prepare(target: Path, whole: Callable[[Path], bool], fill: Callable[[Path], None]) -> Path:
    """Return `target`, filled beside its place and renamed unless it is whole already."""

    def is_whole() -> bool:
        with contextlib.suppress(OSError):
            return whole(target)
        return False

    if is_whole():
        return target
    target.parent.mkdir(mode=0o755, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=target.parent))
    try:
        fill(stage)
        for path in [stage, *stage.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.suffix == ".so" else 0o644)
        if target.exists() and not is_whole():  # damaged: running sandboxes keep it mounted, new ones get the copy
            damaged = stage.with_name(f"{stage.name}-damaged")
            os.rename(target, damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        with contextlib.suppress(OSError):  # another daemon may have been first
            os.rename(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return target


def hold(directory: Path, prepare: Callable[[Path], Path] = prepare) -> tuple[Path, int]:
    """Return the directory that `prepare` makes, and a descriptor that keeps it while it is open.

    Raises:
        OSError: the directory cannot be made.
    """
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
        os.close(descriptor)  # another daemon removed it before the lock was taken


def used_by_others(own: Path) -> bool:
    """Return whether a daemon of another version is alive: one that drains still has sandboxes."""
    for path in own.parent.iterdir():
        if path == own or path.name.startswith((".", "native-")):  # daemons of different versions share the packages
            continue
        with _exclusively(path) as free:
            if not free:
                return True
    return False


def remove_unused(directory: Path) -> None:
    """Remove the directories that no daemon holds: other versions' and unfinished ones."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") and time.time() - path.stat().st_mtime < STAGE_SECONDS:
            continue
        gone = directory / f".gone-{path.name.lstrip('.')}-{os.getpid()}"
        with _exclusively(path) as free:
            if free:
                os.rename(path, gone)  # under the lock, so that no daemon comes to hold it in between
        if free:
            shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[bool]:
    """Lock a directory; gives False where a daemon holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def _compile(path: Path, shown_as: str) -> None:
    import py_compile

    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(path), dfile=shown_as, doraise=True, invalidation_mode=mode)


async def compile_rest(directory: Path) -> None:
    """Compile the modules that `prepare` left, in a process of its own; functions of other users read them too."""
    code = (
        "import compileall, os, sys; os.umask(0o022); "
        "compileall.compile_dir(sys.argv[1], ddir='/opt/atoll/lib', quiet=2, "
        "invalidation_mode=__import__('py_compile').PycInvalidationMode.UNCHECKED_HASH)"
    )
    marker = directory / ".compiled"
    if not marker.exists():
        child = Child([sys.executable, "-I", "-S", "-c", code, str(directory)], env={})
        try:
            status = await child.wait()
        finally:  # a daemon that leaves takes it along: the state directory may be about to be removed
            await child.kill()
        if status == 0:
            with contextlib.suppress(OSError):
                marker.touch()
