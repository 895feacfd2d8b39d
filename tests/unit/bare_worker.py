"""A worker without sandbox and daemon: a child Python that has nothing but a copy of Atoll and its cloudpickle.

What it does with `sources` and `call` messages is what `agent.worker` does.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import atoll
from atoll.payload import exceptions_load
from atoll.payload.functions import FunctionPickler, loads_result
from atoll.sdk.modules.bundle import Bundle
from atoll.wire.channel import Channel

CHILD = """
import socket, sys, types
sys.path[:] = [path for path in sys.path if "site-packages" not in path]
sys.path[0:0] = [sys.argv[1], *sys.argv[4:]]
from atoll.payload import exceptions_dump, install, pickling, values
from atoll.payload.texts import load as texts_load
from atoll.wire.channel import Channel, ChannelClosed
pickling.cloudpickle()
channel = Channel(socket.socket(fileno=int(sys.argv[2])))
sys.modules["__main__"] = types.ModuleType("__main__")
while True:
    try:
        header, buffers = channel.receive()
    except ChannelClosed:
        break
    if header["type"] == "sources":
        install.install(header, buffers, sys.argv[3])
        continue
    if header["type"] == "texts":
        texts_load.show(buffers[0])
        continue
    try:
        function = values.loads_function(buffers[0], header["reusable"])
        args, kwargs = values.loads_arguments(buffers[1], buffers[2:])
        data, pieces = values.dumps_result(function(*args, **kwargs))
        channel.send({"type": "result"}, [data, *pieces])
    except BaseException as error:
        described, pieces = exceptions_dump.dumps(error)
        channel.send({"type": "error", "error": described}, pieces)
"""


class BareWorker:
    """Runs calls in a child process until it is closed.

    Args:
        directory: where the library is copied to and bundles are unpacked.
        path: more directories that the child may import from, as an environment's would be.
    """

    def __init__(self, directory: Path, *path: Path) -> None:
        library = directory / "lib"
        if not library.exists():
            shutil.copytree(
                Path(atoll.__file__).parent, library / "atoll", ignore=shutil.ignore_patterns("__pycache__")
            )
            import cloudpickle

            (library / "atoll" / "agent" / "bare.py").write_text(CHILD)
            shutil.copy(Path(cloudpickle.__file__).parent / "cloudpickle.py", library / "_atoll_cloudpickle.py")
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        with theirs:
            child = [
                sys.executable,
                "-I",
                str(library / "atoll/agent/bare.py"),
                str(library),
                str(theirs.fileno()),
                str(directory / "bundles"),
            ]
            self.process = subprocess.Popen(
                [*child, *map(str, path)], pass_fds=[theirs.fileno()], cwd="/", env={"PATH": os.environ["PATH"]}
            )

    def install(self, bundle: Bundle | None) -> None:
        if bundle is not None:
            self.channel.send(*bundle.message())

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function, or what a `FunctionPickler` pickles, in the child."""
        pickler = function if isinstance(function, FunctionPickler) else FunctionPickler(function)
        data, reusable = pickler.dumps()
        if texts := pickler.current().texts.data:
            self.channel.send({"type": "texts"}, [texts])
        arguments, buffers = pickler.dumps_arguments(args, kwargs)
        self.channel.send({"type": "call", "reusable": reusable}, [data, arguments, *buffers])
        answer = self.channel.receive()
        if answer.type == "result":
            return loads_result(answer.buffers[0], answer.buffers[1:])
        raise exceptions_load.loads(answer.header["error"], answer.buffers)

    def close(self) -> None:
        self.channel.close()
        assert self.process.wait(120) == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.close()


def run_script(directory: Path, text: str, *arguments: str, name: str = "program.py") -> str:
    """Run a program in a process of its own, where `BareWorker` can be imported; return what it prints."""
    root = str(Path(__file__).parents[2])
    script = directory / name
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((root, os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
