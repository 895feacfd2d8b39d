"""`atoll init`: a first program, ready to run, and a file with the names that syncs leave out."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from atoll.cli.terminal import echo
from atoll.errors import StateUnusable
from atoll.terminal_text import printable

PROGRAM = "first.py"

_FILES = {
    PROGRAM: '''\
"""A first program. Run it with `atoll run first.py --name Ada`, or with `python first.py`."""

from pathlib import Path

from atoll import isolated


@isolated(requirements=["humanize"])  # installed for the function alone, once
def visit(name: str = "you") -> str:
    """Count the visits of a name, in a file that stays."""
    import humanize

    counter = Path("/data/visits", name)  # /data is yours: files stay from call to call
    counter.parent.mkdir(exist_ok=True)
    visits = int(counter.read_text()) + 1 if counter.exists() else 1
    counter.write_text(str(visits))
    return f"Hello {name}, this is your {humanize.ordinal(visits)} visit."


if __name__ == "__main__":
    print(visit("Ada"))
''',
    ".atollignore": """\
# Names that `sync_dir` and `atoll data sync` leave out, as in a .gitignore.
.git/
.venv/
__pycache__/
*.pyc
node_modules/
.env
""",
}


def init(directory: str = ".", /) -> int:
    """Write a first program and an .atollignore; files that are there already stay as they are.

    Parameters
    ----------
    directory: str
        For the files; made if it is not there.
    """
    place = Path(directory)
    try:
        _write(place)
    except OSError as error:
        at = printable(str(error.filename or place))
        raise StateUnusable(f"cannot write `{at}`: {error.strerror or error}", hint="name another directory") from error
    program = os.path.relpath(place / PROGRAM)
    echo(f"next: atoll run {shlex.quote(printable(program))} --name Ada")
    return 0


def _write(place: Path) -> None:
    """Write the files that are not there."""
    place.mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        path = place / name
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            echo(f"kept {path}, which is there already")
        else:
            echo(f"wrote {path}")
