"""The table of errors in the docs and the classes in the code are the same."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

import atoll
from atoll import errors

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
BRANCHES = {
    "**for the caller to fix**": errors.CallerError,
    "**for the operator to fix**": errors.OperatorError,
    "**for us to fix**": errors.InternalError,
    "**of the command line only**": errors.CallerError,
}


class Row(NamedTuple):
    code: str
    bases: tuple[str, ...]
    branch: type[errors.AtollError]
    when: str
    action: str


def rows() -> dict[str, Row]:
    """Return the table's rows by the type that they are about."""
    found: dict[str, Row] = {}
    branch: type[errors.AtollError] = errors.AtollError
    lines = PAGE.read_text().split("| type | code |")[1].split("\n\n")[0].splitlines()[2:]
    for line in lines:
        name, code, bases, when, action = (cell.strip() for cell in line.strip("|").split("|"))
        if name in BRANCHES:
            branch = BRANCHES[name]
            continue
        name = name.strip("`")
        assert name not in found
        found[name] = Row(code.strip("`"), tuple(re.findall(r"`(\w+)`", bases)), branch, when, action)
    return found


def classes() -> dict[str, type[errors.AtollError]]:
    """Return the classes below `AtollError` that have a code of their own, by name; one of them for each name.

    Classes without one are private distinctions: users see the row of the class above.
    """
    for module in pkgutil.walk_packages(atoll.__path__, "atoll."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: dict[str, type[errors.AtollError]] = {}
    left: list[type[errors.AtollError]] = [errors.AtollError]
    while left:
        cls = left.pop()
        left += cls.__subclasses__()
        if cls.__module__.startswith("atoll.") and "code" in vars(cls):
            assert cls.__name__ not in found
            found[cls.__name__] = cls
    return found


def test_table_and_code_have_the_same_errors() -> None:
    """Each class below `AtollError` has its row with its code, and there are no others."""
    assert {name: row.code for name, row in rows().items()} == {name: cls.code for name, cls in classes().items()}


def test_table_says_what_each_error_is() -> None:
    """The bases and the part of the table are those of the class."""
    known = classes()
    for name, row in rows().items():
        assert tuple(base.__name__ for base in known[name].__bases__) == row.bases, name
        assert issubclass(known[name], row.branch), name


def test_each_error_says_when_it_comes_and_what_to_do() -> None:
    """No row is without words, but for the roots, which nobody raises."""
    roots = {"AtollError", "CallerError", "OperatorError"}
    for name, row in rows().items():
        assert row.when, name
        assert bool(row.action) == (name not in roots), name


def test_codes_are_unique_and_survive_as_data() -> None:
    """A code names one class: what goes to another process as data comes back as the same type."""
    known = list(classes().values())
    assert len({cls.code for cls in known}) == len(known)
    for cls in known:
        if cls.__module__ != "atoll.errors":
            continue
        back = errors.from_data(cls("what happened", hint="next step", number=1).to_data())
        assert type(back) is cls
        assert (back.message, back.hint, back.details) == ("what happened", "next step", {"number": 1})
