"""Facts of a code object, read from its instructions: names, imports, and possible changes of captured values."""

from __future__ import annotations

import dis
import inspect
import re
import sys
import types
import typing
import weakref
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any, NamedTuple

_INTROSPECTION = frozenset(
    {
        "globals",
        "vars",
        "exec",
        "eval",
        "setattr",
        "delattr",
        "_getframe",
        "currentframe",
        "cell_contents",
        "f_globals",
        "__globals__",
        "__dict__",
        "__closure__",
        "__code__",
        "__defaults__",
        "__kwdefaults__",
        "__setattr__",
        "__delattr__",
        "gc",
        "modules",
        "__main__",
    }
)
_NAME_OPCODES = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"})
_MODULE_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z")
WORDS = re.compile(r"(?<![\w.])[^\W\d]\w*")
"""Identifiers in an expression, without attributes."""
_EXPRESSION = re.compile(r"[@~<>=+*(\[]")
"""A character that sets an expression apart from a message."""
_LONGEST_EXPRESSION = 10_000
_HAS_DOCSTRING = 0x4000000
"""`CO_HAS_DOCSTRING`, from Python 3.13 on."""


class CodeFacts(NamedTuple):
    """Facts of a code object and those nested in it; see `code_facts`."""

    names: tuple[str, ...]
    """Globals that it reads, binds or deletes."""
    attributes: frozenset[str]
    """All names in it, attributes and imports among them."""
    imports: frozenset[str]
    """Top-level names of modules that it imports; empty text stands for a relative import."""
    literals: frozenset[str]
    """Strings that `import_module` or `__import__` may be given, as top-level names."""
    rebinds: frozenset[str]
    """Globals that it binds or deletes, and free variables that it rebinds."""
    binds_attributes: bool
    introspects: bool
    words: frozenset[str]
    """Identifiers in strings that look like expressions, docstrings aside, and `__main__`."""


_facts: weakref.WeakKeyDictionary[CodeType, CodeFacts] = weakref.WeakKeyDictionary()


def code_facts(code: CodeType) -> CodeFacts:
    """Return the facts of `code`, nested functions and class bodies included."""
    found = _facts.get(code)
    if found is not None:
        return found
    names: dict[str, None] = {}
    attributes = set(code.co_names)
    imports: set[str] = set()
    literals: set[str] = set()
    rebinds: set[str] = set()
    words: set[str] = set()
    binds_attributes = False
    instructions = [one for one in dis.get_instructions(code) if one.opname not in ("EXTENDED_ARG", "CACHE")]
    for position, one in enumerate(instructions):
        if one.opname in _NAME_OPCODES:
            names[one.argval] = None
            if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                rebinds.add(one.argval)
        elif one.opname in ("STORE_DEREF", "DELETE_DEREF"):
            if one.argval in code.co_freevars:
                rebinds.add(one.argval)
        elif one.opname in ("STORE_ATTR", "DELETE_ATTR"):
            binds_attributes = True
        elif one.opname == "IMPORT_NAME":
            level = instructions[position - 2].argval if position >= 2 else 0
            imports.add("" if level else one.argval.partition(".")[0])
        elif type(one.argval) is CodeType and position and type(instructions[position - 1].argval) is tuple:
            words.update(_annotations(instructions[position - 1].argval[1::2]))  # names and annotations in turn
    if not attributes.isdisjoint(("import_module", "__import__")):
        for const in code.co_consts:
            if isinstance(const, str) and _MODULE_NAME.match(const):
                literals.add(const.partition(".")[0])
    introspects = not attributes.isdisjoint(_INTROSPECTION)
    words.update(_words(code))
    for const in code.co_consts:
        if isinstance(const, CodeType):
            inner = code_facts(const)
            names.update(dict.fromkeys(inner.names))
            attributes |= inner.attributes
            imports |= inner.imports
            literals |= inner.literals
            rebinds |= inner.rebinds - set(code.co_cellvars)
            binds_attributes = binds_attributes or inner.binds_attributes
            introspects = introspects or inner.introspects
            words |= inner.words
    facts = CodeFacts(
        tuple(names),
        frozenset(attributes),
        frozenset(imports),
        frozenset(literals),
        frozenset(rebinds),
        binds_attributes,
        introspects,
        frozenset(words),
    )
    _facts[code] = facts
    return facts


def _words(code: CodeType) -> Iterator[str]:
    """Yield the identifiers in the strings of `code` itself that look like expressions."""
    texts = list(code.co_consts)
    if texts and code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<"):
        del texts[0]  # the docstring, or None; from Python 3.13 on the first constant of a function without one
        if sys.version_info >= (3, 13) and not code.co_flags & _HAS_DOCSTRING:
            texts.insert(0, code.co_consts[0])
    elif "__doc__" in code.co_names:  # a class body
        documented = _documentation(code)
        texts = [text for text in texts if text is not documented]
    if not code.co_flags & inspect.CO_OPTIMIZED and "__annotations__" in code.co_names:
        yield from _annotations(texts)  # a class body
    for text in texts:
        if isinstance(text, (tuple, frozenset)):
            texts.extend(text)
        elif isinstance(text, str) and len(text) <= _LONGEST_EXPRESSION and _EXPRESSION.search(text):
            yield from WORDS.findall(text)
        elif text == "__main__":
            yield text


def _annotations(texts: Iterable[object]) -> Iterator[str]:
    """Yield the identifiers in strings, some of which are postponed annotations."""
    for text in texts:
        if isinstance(text, str) and len(text) <= _LONGEST_EXPRESSION:
            yield from WORDS.findall(text)


def _documentation(code: CodeType) -> Any:
    """Return the docstring of a class body."""
    last = None
    for one in dis.get_instructions(code):
        if one.opname == "STORE_NAME" and one.argval == "__doc__":
            return last
        last = one.argval
    return None


_MOST_NOTE = 64 << 10


def names_in_annotations(notes: Iterable[Any], depth: int = 4) -> Iterator[str]:
    """Give the identifiers in annotations that are text, those in other annotations included."""
    for note in tuple(notes):
        if isinstance(note, str):
            yield from WORDS.findall(note[:_MOST_NOTE])
        elif isinstance(note, typing.ForwardRef):
            yield from WORDS.findall(note.__forward_arg__)
        elif depth and (not isinstance(note, type) or isinstance(note, types.GenericAlias)):
            yield from names_in_annotations(typing.get_args(note), depth - 1)
