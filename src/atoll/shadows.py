"""Modules of the user's that have the name of one of Python's, and break what imports that; Python 3.13 says it so.

Imported after such an error only, so this module imports nothing that is not loaded at Python's start.
"""

from __future__ import annotations

import os
import sys

_STANDARD = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def hint(error: BaseException) -> str:
    """Return the files to rename, in Python's words; empty where none has to do with the error.

    A file has to do with it if the text names its module, or if it is among the frames.
    """
    text = f"{type(error).__name__}: {error}"
    if "consider renaming" in text:
        return ""
    frames = _files_of_frames(error)
    found = {}
    for file in [*frames, getattr(error, "path", None), *_files_of_modules()]:
        name = _taken_name(file)
        if name and (f"'{name}'" in text or file in frames):
            found[name] = str(file)
    return "; ".join(
        f"consider renaming {file!r} since it has the same name as the standard library module named {name!r} and "
        "prevents importing that standard library module"
        for name, file in found.items()
    )


def explain(error: BaseException) -> None:
    """Add the hint to an error as a note."""
    if (found := hint(error)) and found not in getattr(error, "__notes__", ()):
        error.add_note(found)


def _files_of_frames(error: BaseException) -> set[object]:
    files = set()
    chain: BaseException | None = error
    while chain is not None:
        frame = chain.__traceback__
        while frame is not None:
            files.add(frame.tb_frame.f_globals.get("__file__"))
            frame = frame.tb_next
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    return files


def _files_of_modules() -> list[object]:
    return [getattr(module, "__file__", None) for module in list(sys.modules.values())]


def _taken_name(file: object) -> str:
    """Return the name of the Python module that a file would be imported for; empty for any other file."""
    if not isinstance(file, str) or not os.path.isabs(file) or file.startswith(_STANDARD):
        return ""
    folder, name = os.path.split(file)
    if name.startswith("__init__."):
        folder, name = os.path.split(folder)
    name = name.partition(".")[0]
    return name if name in sys.stdlib_module_names and folder in _places() else ""


def _places() -> list[str]:
    """Return the entries of `sys.path`, with the working directory, which `python -c` has as an empty one."""
    try:
        return [entry or os.getcwd() for entry in sys.path]
    except OSError:  # it was removed
        return sys.path
