"""Snapshots of a program's main module, for child processes that begin anew.

Theory of operation. A child of `spawn` or `forkserver` imports the module that `__main__.__spec__` of its parent names.
Inside, that is a module in `agent.mains`, written when the first such child of a call starts: the names that the
function has bound already as they are, the others as the caller has them. Each name has a pickle of its own, which
the child reads when the name is asked for. So a child runs none of the program's code, and a value that cannot be
pickled is missed only by those who use it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from atoll.agent.mains import DIRECTORY
from atoll.agent.questions import Questions
from atoll.payload.program import namespaces
from atoll.payload.texts import load as texts

_TEXTS = ""
"""The place of the texts of the caller's files, which no name has."""
MOST_KEPT = 4
"""Snapshots of one worker; children that live on may still read the last ones."""


class Snapshots:
    """Writes the main modules for children of one worker's functions."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._made: tuple[ModuleType, int, ModuleSpec] | None = None
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._written: list[str] = []
        namespaces.child_spec = self.spec

    def forget(self) -> None:
        """Have the next child get a new one."""
        self._made = None

    def spec(self, module: ModuleType) -> ModuleSpec | None:
        """Return the spec of a module that a child may import in place of `module`; None if none can be written."""
        if os.getpid() != self._pid:  # a child, forked perhaps while another thread had the lock
            self._lock, self._pid = threading.RLock(), os.getpid()
        with self._lock:  # pools may be started in threads
            return self._spec(module)

    def _spec(self, module: ModuleType) -> ModuleSpec | None:
        made = self._made
        if made is not None and made[0] is module and made[1] == len(vars(module)):
            return made[2]
        try:
            name = self._write(module)
        except OSError:
            return None
        spec = ModuleSpec(f"atoll.agent.mains.{name}", None)
        self._made = module, len(vars(module)), spec
        return spec

    def _write(self, module: ModuleType) -> str:
        from atoll.payload import answers

        namespace = dict(vars(module))
        bound = {name: value for name, value in namespace.items() if not name.startswith("__")}
        own = answers.snapshot(bound.items(), frozenset(), vars(module))
        index: dict[str, bytes] = dict(zip(own.names, own.pickles, strict=True))
        left_out, callables = own.left_out, own.callables
        answer = self._questions.snapshot("__main__", own.names)
        if answer is not None and "names" in answer.header:
            index.update(zip(answer.header["names"], answer.buffers, strict=False))
            left_out = {**answer.header["left_out"], **left_out}
            callables += answer.header["callables"]
        fields = {name: namespace[name] for name in namespaces.FIELDS if isinstance(namespace.get(name), str)}
        del fields["__name__"]
        return self._store((fields, index, left_out, callables))

    def _store(self, content: tuple[dict[str, Any], dict[str, bytes], dict[str, str], list[str]]) -> str:
        import hashlib  # few functions start such children, and OpenSSL would cost each agent some milliseconds

        fields, index, left_out, callables = content
        places, blob = {}, bytearray()
        for name, data in (*index.items(), (_TEXTS, texts.packed())):
            places[name] = len(blob), len(data)
            blob += data
        head = json.dumps((fields, places, left_out, callables)).encode()
        data = len(head).to_bytes(8, "big") + head + blob
        name = f"m{hashlib.blake2b(data, digest_size=12).hexdigest()}"
        os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
        path = os.path.join(DIRECTORY, name)
        if not os.path.exists(f"{path}.py"):
            code = f"from atoll.agent import snapshots\n__getattr__ = snapshots.use({path!r}, globals())\n"
            for ending, text in ((".pickles", data), (".py", code.encode())):
                with open(f"{path}.{os.getpid()}.{threading.get_ident()}", "wb") as file:
                    file.write(text)
                os.rename(file.name, path + ending)
        if name not in self._written:
            self._written.append(name)
        for old in self._written[:-MOST_KEPT]:
            for ending in (".py", ".pickles"):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(DIRECTORY, old + ending))
        del self._written[:-MOST_KEPT]
        return name


# --- in the child -----------------------------------------------------------------------------------------------


def use(path: str, namespace: dict[str, Any]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a child's main module."""
    file = open(f"{path}.pickles", "rb")
    size = int.from_bytes(file.read(8), "big")
    fields, places, left_out, callables = json.loads(file.read(size))
    namespace.update(fields)
    start, length = places.pop(_TEXTS)
    if length:
        texts.show(os.pread(file.fileno(), length, 8 + size + start))

    def find(name: str) -> Any:
        main = sys.modules["__main__"]
        namespaces.adopt(main)
        place = places.get(name)
        if place is None:
            text = f"module '__main__' has no attribute {name!r}"
            if name in left_out:
                text += f" in this child process: {left_out[name]}"
                if name in callables:  # a pool whose child cannot find its function waits for ever
                    return _stand_in(text)
            raise AttributeError(text, name=name)
        data = os.pread(file.fileno(), place[1], 8 + size + place[0])
        value = namespaces.Unpickler(io.BytesIO(data), ()).load()
        return vars(main).setdefault(name, value)

    return find


def _stand_in(text: str) -> Callable[..., Any]:
    def missing(*_arguments: Any, **_more: Any) -> Any:
        raise AttributeError(text)

    return missing
