"""A user's program, imported by its file or by the name of its module as Python would, without its unguarded calls.

A file of a package gets its name in the package, so that its relative imports work. The package's directory is found by
`__init__.py` files as `python -m` needs it, and for namespace packages by an entry of `sys.path`, by a project's `src`,
or by relative imports in the file. Any other file is a script: its directory comes first on `sys.path`.

A program is imported to find one function. A call of an isolated function at its top level would run on each
`atoll run` besides the one that was asked for, so it is refused: see `UnguardedCall`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import linecache
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from atoll.errors import CallerError
from atoll.payload import project
from atoll.sdk.function import IsolatedFunction

_RELATIVE_IMPORT = re.compile(r"^[ \t]*from[ \t]+\.", re.MULTILINE)
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
GUARD = 'put the program\'s own calls below `if __name__ == "__main__":`'


class TargetError(CallerError):
    """The file or the function that a command names cannot be used: wrong usage."""

    code = "target"


class UnguardedCall(BaseException):
    """The program called an isolated function while it was imported; no `except Exception` of the program stops it.

    Attributes:
        place: the line of the program, in words.
        namespaces: the globals of the modules that were being imported, by their names.
    """

    def __init__(self, function: IsolatedFunction[..., Any]) -> None:
        main = sys._current_frames().get(threading.main_thread().ident or 0)  # the call may be in a thread of `map`
        frames = list(_importing(sys._getframe(1))) or list(_importing(main))
        self.namespaces = {str(frame.f_globals.get("__name__")): frame.f_globals for frame in frames}
        self.place = ""
        if frames:
            file, line = frames[0].f_code.co_filename, frames[0].f_lineno
            code = linecache.getline(file, line, frames[0].f_globals).strip()
            self.place = f" in line {line} of `{file}`" + (f": `{code}`" if code else "")
        name = getattr(function, "__qualname__", None) or "?"
        super().__init__(f"the isolated function `{name}` is called while the program is imported{self.place}")


class _Place(NamedTuple):
    """A module's name and file, and the directories that its import needs on `sys.path`: first and last."""

    name: str
    file: Path
    first: str
    last: str
    in_package: bool


@functools.lru_cache(maxsize=1)  # a program is imported once, also where a command looks at it twice
def load(target: str, *, by_name: bool = False, whole: bool = True) -> tuple[ModuleType, str]:
    """Import a program and return its module, and a note for the user: empty when all is well.

    Args:
        target: a path, or the dotted name of a module.
        by_name: it is a name even where there is such a path.
        whole: the program must be imported to its end; else up to its first unguarded call, as the note says.

    Raises:
        TargetError: there is no such program, it fails, or calls an isolated function.
    """
    path = Path(target)
    if not by_name and (path.is_file() or path.is_dir() or not _is_name(target)):
        place = _place(_file(path))
        name, module = _import(place, path, whole)
    else:
        working_directory = project.working_directory()
        sys.path.insert(0, working_directory)
        _forget_namesakes(working_directory)
        if os.path.isdir(source := os.path.join(working_directory, "src")) and _is_project(working_directory):
            sys.path.insert(1, source)
        name, module = target, _guarded(lambda: _by_name(target), target, target, whole)
    if isinstance(module, ModuleType):
        return module, ""
    if name not in module.namespaces:
        raise _refusal(module)
    stopped = ModuleType(name)
    vars(stopped).update(module.namespaces[name])
    return stopped, f"the program is read only up to an unguarded call{module.place}; {GUARD}"


def _refusal(call: UnguardedCall) -> TargetError:
    return TargetError(str(call), hint=f"{GUARD}, or run the program itself: `python FILE.py`")


def _is_name(target: str) -> bool:
    return all(part.isidentifier() for part in target.split(".")) and not target.endswith(".py")


def _is_project(directory: str) -> bool:
    return any(os.path.exists(os.path.join(directory, marker)) for marker in project.MARKERS)


def _file(path: Path) -> Path:
    for inner in ("__init__.py", "__main__.py"):
        if path.is_dir() and (path / inner).is_file():
            return path / inner
    if not path.is_file():
        hint = "give the path of a Python file, `FILE.py::FUNC`, or a module's name, `package.module::FUNC`"
        raise TargetError(f"`{path}` is not a file", hint=hint)
    return path


# --- the name of a file's module --------------------------------------------------------------------------------------


def _place(path: Path) -> _Place:
    try:
        path = path.resolve()
    except FileNotFoundError:
        raise TargetError("the working directory was removed", hint="go to another one, with `cd`") from None
    inner = [] if path.stem == "__init__" else [path.stem]
    directory = path.parent
    while (directory / "__init__.py").is_file() and directory.name.isidentifier():
        inner.insert(0, directory.name)
        directory = directory.parent
    in_package = directory != path.parent
    root = _root(path, directory, in_package)
    if root is not None:
        inner = [*directory.relative_to(root).parts, *inner]
        in_package, directory = True, root
    if in_package and inner and all(part.isidentifier() for part in inner):
        return _Place(".".join(inner), path, str(directory), str(path.parent), True)
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else "__atoll_program__"
    return _Place(name, path, str(path.parent), str(path.parent), False)


def _root(path: Path, directory: Path, in_package: bool) -> Path | None:
    """Return the directory above `directory` that namespace packages begin in; None where it is in none."""
    above = [parent for parent in directory.parents if all(map(str.isidentifier, directory.relative_to(parent).parts))]
    marked = [parent for parent in above if _is_project(str(parent.parent)) and parent.name == "src"]
    listed = [parent for parent in above if str(parent) in sys.path and not project.in_environment(f"{parent}/x")]
    if marked or listed:
        return (marked or listed)[0]
    if in_package or not _RELATIVE_IMPORT.search(path.read_text("utf-8", "replace")):
        return None
    return next((parent for parent in above if _is_project(str(parent))), directory.parent if above else None)


# --- import -------------------------------------------------------------------------------------------------------


def _import(place: _Place, shown: Path, whole: bool) -> tuple[str, ModuleType | UnguardedCall]:
    sys.path.insert(0, place.first)
    _forget_namesakes(place.first)
    if place.last != place.first:
        sys.path.append(place.last)
    if place.in_package:
        module = _guarded(lambda: _by_name(place.name), str(place.file), str(shown), whole)
        if not isinstance(module, ModuleType) or _is_same(getattr(module, "__file__", None), place.file):
            return place.name, module
        other = getattr(module, "__file__", None) or "a part of Python"
        raise TargetError(
            f"`{shown}` is the module `{place.name}`, and that name finds `{other}` first",
            hint="rename the package, or run the file from another environment",
        )
    spec = importlib.util.spec_from_file_location(place.name, place.file)
    if spec is None or spec.loader is None:
        raise TargetError(f"`{shown}` is not a Python file", hint="its name must end in `.py`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[place.name] = module
    loader = spec.loader

    def run() -> ModuleType:
        loader.exec_module(module)
        return module

    return place.name, _guarded(run, str(place.file), str(shown), whole)


def _forget_namesakes(directory: str) -> None:
    """Let the program find its own modules instead of those of the same names that this process has loaded.

    Those that Python loads before any program's directory is on `sys.path` win there, too.
    """
    try:
        names = {name.partition(".")[0] for name in os.listdir(directory) if name.endswith(".py") or "." not in name}
    except OSError:
        return
    for name in names & sys.modules.keys() - {"atoll", "fal_serverless", "encodings", "__main__"}:
        path = os.path.join(directory, name)
        origin = getattr(getattr(sys.modules[name], "__spec__", None), "origin", None)
        is_module = os.path.isfile(f"{path}.py") or os.path.isfile(os.path.join(path, "__init__.py"))
        if is_module and origin not in ("built-in", "frozen") and not str(origin).startswith(path):
            for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[loaded]


def _is_same(file: str | None, path: Path) -> bool:
    return file is not None and os.path.exists(file) and os.path.samefile(file, path)


def _by_name(name: str) -> ModuleType:
    return importlib.import_module(name)


def _guarded(run: Any, file: str, shown: str, whole: bool) -> ModuleType | UnguardedCall:
    """Import with isolated functions that refuse to be called.

    Args:
        file: of the program, or its module's name.
        whole: an unguarded call is an error.
    """
    calls: list[UnguardedCall] = []
    try:
        with _refusing(calls):
            module: ModuleType = run()
    except UnguardedCall as call:
        if whole:
            raise _refusal(call) from None
        return call
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and _is_part(error.name, shown):
            raise TargetError(
                f"there is no file and no module `{shown}`",
                hint="the name is looked up in the working directory, as `python -m` does",
            ) from None
        ending = f"`{shown}` ends itself while it is imported" if isinstance(error, SystemExit) else ""
        text = "".join(traceback.format_exception(error.with_traceback(_own_frames(error, file))))
        hint = GUARD if ending else "mend the file" + _namesakes(error)
        raise TargetError(f"{ending or f'`{shown}` cannot be imported'}\n{text.rstrip()}", hint=hint) from None
    if calls and whole:  # one in another thread, or one whose error the program has caught
        raise _refusal(calls[0])
    return module


def _is_part(name: str, target: str) -> bool:
    return target == name or target.startswith(f"{name}.")


def _namesakes(error: BaseException) -> str:
    from atoll import shadows

    found = shadows.hint(error)
    return f"; {found}" if found else ""


@contextmanager
def _refusing(calls: list[UnguardedCall]) -> Iterator[None]:
    def refuse(function: IsolatedFunction[..., Any]) -> UnguardedCall:
        call = UnguardedCall(function)
        calls.append(call)
        return call

    IsolatedFunction.refusal = refuse
    try:
        yield
    finally:
        IsolatedFunction.refusal = None


def _importing(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames of modules that are being imported, the newest first."""
    while frame is not None:
        is_own = frame.f_code.co_filename.startswith((_OWN, "<frozen")) or frame.f_globals.get("__name__") == "__main__"
        if frame.f_code.co_name == "<module>" and not is_own:
            yield frame
        frame = frame.f_back


def _own_frames(error: BaseException, file: str) -> Any:
    """Return the traceback from the program's first frame on; the frames before are Atoll's and the importer's."""
    theirs = error.__traceback__
    while theirs is not None:
        name = theirs.tb_frame.f_code.co_filename
        if name == file or not (name.startswith((_OWN, "<frozen")) or name == importlib.__file__):
            break
        theirs = theirs.tb_next
    return theirs
