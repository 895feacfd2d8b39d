"""What Atoll is measured beside; each peer does the same work in the plainest way that it offers."""

from __future__ import annotations

import asyncio
import compileall
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from atoll.environments.built.interpreter import probe
from atoll.model.mounts import Bind, Identity
from atoll.sandbox import bwrap, machine, programs, seccomp
from atoll.sandbox.policy import confine

IMPORT = "import cloudpickle"


def compiled_cloudpickle(directory: Path) -> Path:
    """Copy cloudpickle, with its bytecode, to a directory for `PYTHONPATH`."""
    import cloudpickle

    target = directory / "cloudpickle-alone"
    shutil.copytree(
        Path(cloudpickle.__file__).parent, target / "cloudpickle", ignore=shutil.ignore_patterns("__pycache__")
    )
    compileall.compile_dir(target, quiet=1)
    target.chmod(0o755)
    return target


class BarePython:
    """`python -c "import cloudpickle"` in the environment that the function has."""

    def __init__(self, environment: Path, cloudpickle: Path) -> None:
        self._argv = [str(environment / "bin" / "python"), "-c", IMPORT]
        self._env = {"PYTHONPATH": str(cloudpickle), "PATH": "/usr/bin:/bin"}

    def run(self) -> None:
        subprocess.run(self._argv, env=self._env, check=True, stdin=subprocess.DEVNULL)


class Bubblewrap:
    """The same in bubblewrap, with the binds, the filter and the change of user that a sandbox of Atoll has.

    The command line is made once, and its memory files are rewound before each run, outside of what is measured.
    """

    def __init__(self, home: Path, environment: Path, cloudpickle: Path) -> None:
        as_root = os.geteuid() == 0
        here = machine.read()
        volume = home / "volumes" / "local" / "data"
        owner = volume.stat()
        interpreter = asyncio.run(probe(getattr(sys, "_base_executable", None) or sys.executable))
        library = next(path for path in (home / "agents").iterdir() if not path.name.startswith("."))
        policy = confine(
            ["/opt/atoll/env/bin/python", "-c", IMPORT],
            machine=here,
            identity=Identity(owner.st_uid, owner.st_gid),
            binds=[
                Bind(str(library), "/opt/atoll/lib"),
                Bind(str(environment), "/opt/atoll/env"),
                *interpreter.binds,
                Bind(str(volume), "/data", writable=True),
                Bind(str(cloudpickle), "/opt/cloudpickle"),
            ],
            environment=[("PYTHONPATH", "/opt/cloudpickle")],
        )
        self._null = os.open(os.devnull, os.O_WRONLY)
        self._files = {file.target: _memory_file(file.content) for file in policy.files}
        filter_fd = _memory_file(seccomp.program(here.architecture))
        self._held = os.dup(self._null)
        options = bwrap.options(
            policy,
            as_root=as_root,
            seccomp_fd=filter_fd,
            status_fd=self._null,
            orphan_pipe_fd=self._held,
            file_fds=self._files,
        )
        args_fd = _memory_file(b"".join(os.fsencode(option) + b"\0" for option in options))
        setpriv = programs.find_setpriv() if as_root else ""
        self._argv = bwrap.arguments(
            policy, bwrap=programs.find_bwrap(), setpriv=setpriv, as_root=as_root, args_fd=args_fd
        )
        self._rewound = (*self._files.values(), filter_fd, args_fd)

    def rewind(self) -> None:
        """Prepare the next run."""
        for descriptor in self._rewound:
            os.lseek(descriptor, 0, os.SEEK_SET)

    def run(self) -> None:
        subprocess.run(
            self._argv, env={}, pass_fds=(*self._rewound, self._null, self._held), check=True, stdin=subprocess.DEVNULL
        )


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("benchmark")
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


class WarmPool:
    """`concurrent.futures.ProcessPoolExecutor` with one process, started."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._pool = ProcessPoolExecutor(1)
        self._function = function

    def call(self, *args: Any) -> Any:
        return self._pool.submit(self._function, *args).result()

    def close(self) -> None:
        self._pool.shutdown()


def has_isolate() -> bool:
    """Whether the `isolate` package is installed here."""
    return importlib.util.find_spec("isolate") is not None


class Isolate:
    """The `isolate` package with its local environment: a process for each call, on an open connection."""

    def __init__(self, function: Callable[..., Any]) -> None:
        isolate: Any = importlib.import_module("isolate")
        settings: Any = importlib.import_module("isolate.backends.settings")
        environment = isolate.prepare_environment("local")
        quiet = settings.IsolateSettings(serialization_method="cloudpickle", log_hook=lambda _log: None)
        environment.apply_settings(quiet)
        self._connection = environment.connect()
        self._open = self._connection.__enter__()
        self._function = function

    def call(self, *args: Any) -> Any:
        return self._open.run(partial(self._function, *args))

    def close(self) -> None:
        self._connection.__exit__(None, None, None)


class Uv:
    """`uv venv`, then `uv pip install --compile-bytecode`, from a cache of its own."""

    def __init__(self, directory: Path, requirements: list[str]) -> None:
        from uv import find_uv_bin

        self._uv = find_uv_bin()
        self._directory = directory / "uv"
        self._requirements = requirements
        self._python = getattr(sys, "_base_executable", None) or sys.executable
        kept = ("PATH", "HOME", "SSL_CERT_FILE", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "HTTPS_PROXY", "HTTP_PROXY")
        self._env = {name: os.environ[name] for name in kept if name in os.environ}
        self._env["UV_CACHE_DIR"] = str(directory / "uv-cache")

    def clear(self) -> None:
        """Remove what the last run made."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def build(self, *, offline: bool) -> None:
        target = str(self._directory)
        more = ["--offline"] if offline else []
        subprocess.run([self._uv, "venv", "-q", "--python", self._python, target], env=self._env, check=True)
        install = [self._uv, "pip", "install", "-q", "--python", target, "--compile-bytecode", *more]
        subprocess.run([*install, *self._requirements], env=self._env, check=True)


class PipeGenerator:
    """A generator in a process of its own, whose items come through `multiprocessing.Pipe`, one by one."""

    def __init__(self, context: Any, function: Callable[..., Any]) -> None:
        self._mine, theirs = context.Pipe()
        self._process = context.Process(target=self._serve, args=(function, theirs), daemon=True)
        self._process.start()
        theirs.close()

    @staticmethod
    def _serve(function: Callable[..., Any], connection: Any) -> None:
        while (count := connection.recv()) is not None:
            for item in function(count):
                connection.send((True, item))
            connection.send((False, None))

    def items(self, count: int) -> Iterator[Any]:
        self._mine.send(count)
        while True:
            more, item = self._mine.recv()
            if not more:
                return
            yield item

    def close(self) -> None:
        self._mine.send(None)
        self._process.join()
        self._mine.close()


class QueueGenerator:
    """The same through `multiprocessing.Queue`."""

    def __init__(self, context: Any, function: Callable[..., Any]) -> None:
        self._wishes, self._items = context.Queue(), context.Queue(1000)
        self._process = context.Process(target=self._serve, args=(function, self._wishes, self._items), daemon=True)
        self._process.start()

    @staticmethod
    def _serve(function: Callable[..., Any], wishes: Any, items: Any) -> None:
        while (count := wishes.get()) is not None:
            for item in function(count):
                items.put((True, item))
            items.put((False, None))

    def items(self, count: int) -> Iterator[Any]:
        self._wishes.put(count)
        while True:
            more, item = self._items.get()
            if not more:
                return
            yield item

    def close(self) -> None:
        self._wishes.put(None)
        self._process.join()


def find_ray(cores: int) -> Any:
    """Return Ray, started on this machine with as many cores, or None where it is not installed."""
    if importlib.util.find_spec("ray") is None:
        return None
    ray: Any = importlib.import_module("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray


def stop_daemon() -> None:
    """End the daemon of this `ATOLL_HOME` with all that it runs."""
    code = "import sys; from atoll.cli.main import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, "stop"], check=True, stdout=subprocess.DEVNULL)
