"""Packages of the environment, imported before workers are forked, and the safety check of each import.

Theory of operation. Importing NumPy and pandas takes some 400 ms, copying a process that has imported them a few.
A worker reports the modules that its calls have imported from the environment; the daemon keeps the list, and asks
the agent to import them ahead. The agent stays as it is and forks a child for this, the preloader, which imports one
module after another and looks at itself after each. A module is refused that leaves a thread, a child process or an
open descriptor behind: a fork would copy half of them. A module is refused, too, that changes the state of the process
(directory, variables, signals, streams, ...) or replaces names of other packages: functions that never import it would
see the change. A refused module cannot be taken out of a process again, so
the preloader ends, and the agent starts another one without that module. Once all are imported, the preloader forks
workers as the agent does.

Threads are counted after a fork: OpenBLAS starts some at its import, ends them before each fork, and starts them anew
when the worker computes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType

MOST_MODULES = 2000
MOST_NAME = 200
"""Modules of one environment that are reported and imported ahead, and characters of one name."""


class UnsafeImport(Exception):
    """A module that must not be imported before a fork; the text says why."""


class Imported:
    """The modules of the environment that this process has imported since it was last asked."""

    def __init__(self) -> None:
        self._known = set(sys.modules)
        self._count = len(sys.modules)

    def new(self) -> list[str]:
        """Return the new ones, those that import others before these; costs nothing where nothing was imported."""
        if len(sys.modules) == self._count:
            return []
        self._count = len(sys.modules)
        # A module enters this dictionary for good when its import ends, after the modules that it imports.
        names = [name for name in reversed(list(sys.modules)) if name not in self._known]
        self._known.update(names)
        return [name for name in names if len(name) <= MOST_NAME and from_environment(name)][:MOST_MODULES]


def from_environment(name: str) -> bool:
    """Return whether an imported module is the environment's own, and not the project's, Atoll's or Python's."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    # A module that calls itself by another name could not be imported by this one.
    return spec is not None and spec.name == name and _in_environment(spec.origin)


def _in_environment(origin: object) -> bool:
    return isinstance(origin, str) and origin.startswith(sys.prefix + os.sep) and "site-packages" in origin


def import_all(names: Iterable[str], begin: Callable[[str], None]) -> list[str]:
    """Import modules of the environment, and return those that earlier ones of them have not imported.

    A module that does not exist, is not the environment's or raises is left out.

    Args:
        begin: is told of each module before its import.

    Raises:
        UnsafeImport: an import has left something behind that a fork must not copy.
    """
    needed = []
    descriptors, state = _descriptors(), _process_state()
    # Packages before their modules, most of which they import; a package before those that import it (they come first
    # in `names`), so that a change of its names is seen.
    ordered = list(names)[::-1]
    for name in sorted(ordered, key=lambda one: one.count(".")):
        if name in sys.modules or not _exists(name):
            continue
        begin(name)
        before = _public_names()
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
            needed.append(name)
        _check(descriptors)
        if changed := [part for part, value in _process_state().items() if value != state[part]]:
            raise UnsafeImport(f"its import changes the process's {changed[0]}")
        _check_names(before, name.partition(".")[0])
    return needed


def _process_state() -> dict[str, object]:
    """Return the state of this process that imports must leave alone."""
    import _locale  # the start of most agents does without
    import signal

    mask = os.umask(0)
    os.umask(mask)
    logging = sys.modules.get("logging")
    return {
        "working directory": os.getcwd(),
        "file mode mask": mask,
        "environment variables": dict(os.environ),
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "signal mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "recursion limit": sys.getrecursionlimit(),
        "standard streams": (sys.stdin, sys.stdout, sys.stderr),
        "hooks for errors": (sys.excepthook, sys.unraisablehook, sys.displayhook),
        "search path": list(sys.path),
        "log handlers": list(logging.root.handlers) if logging is not None else [],
        "locale": _locale.setlocale(_locale.LC_ALL),
    }


def _public_names() -> dict[str, dict[str, object]]:
    """Return the public names of all modules with their values; submodules, which imports add, are left out."""
    return {
        name: {key: value for key, value in vars(module).items() if _is_public(key, value)}
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType)
    }


def _is_public(name: str, value: object) -> bool:
    return not name.startswith("_") and not isinstance(value, ModuleType)


def _same(now: object, before: object) -> bool:
    """Return whether a name still has its value; equal plain values may be made anew, as by `time.tzset`."""
    return now is before or (type(now) is type(before) and isinstance(now, (int, float, str, tuple)) and now == before)


def _check_names(before: dict[str, dict[str, object]], package: str) -> None:
    """Raise for names of other packages that the import of a module of `package` has replaced or removed."""
    after = _public_names()
    for name, values in before.items():
        now = after.get(name, {})
        if name.partition(".")[0] != package and any(not _same(now.get(key), value) for key, value in values.items()):
            raise UnsafeImport(f"its import changes the module `{name}`")


def _exists(name: str) -> bool:
    """Return whether a module is the environment's, as far as can be known before the import."""
    parent, _, _ = name.rpartition(".")
    if parent and parent not in sys.modules:
        return False
    import importlib.util  # the start of most agents does without

    try:
        spec = importlib.util.find_spec(name)
    except Exception:
        return False
    return spec is not None and _in_environment(spec.origin)


def _check(descriptors: set[str]) -> None:
    """Raise for side effects of the last import on this process."""
    if opened := _descriptors() - descriptors:
        raise UnsafeImport(f"its import leaves `{min(opened).split(' ', 1)[1]}` open")
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        raise UnsafeImport("its import starts a process")
    if _threads() > 1:
        pid = os.fork()  # a library may end its own threads before a fork
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        if _threads() > 1:
            raise UnsafeImport("its import starts a thread")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _descriptors() -> set[str]:
    """Return the open descriptors, each with its target."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory's own descriptor is closed by now
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return found


def reseed() -> None:
    """Give this process random numbers of its own; Python's `random` sees to itself after a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        with contextlib.suppress(Exception):
            numpy_random.seed()


def forget(tops: Iterable[str]) -> None:
    """Forget preloaded packages that modules of the project hide, so that these are imported.

    Args:
        tops: the project's top-level files and directories.
    """
    hidden = {name for name in (top.partition(".")[0] for top in tops) if from_environment(name)}
    if hidden:
        for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
            del sys.modules[name]
