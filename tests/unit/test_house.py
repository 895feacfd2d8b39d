"""The shape of the code: sizes of folders and modules, and the words of docstrings and comments."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

import atoll

SOURCE = Path(atoll.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
MOST_MODULES = 19
"""Modules of one folder, without `__init__.py`."""
MOST_LINES = 400
"""Lines of one module."""
OPENERS = re.compile(r"(What|Which|Where|Whether|Who|How|Why)\b")
MOST_WHATS = 3.0
"""Uses of the word "what" in 1,000 words of docstrings and comments; the codebases measured use it once."""

texts = {str(path.relative_to(SOURCE)): path.read_text("utf-8") for path in MODULES}


def words_of(text: str) -> str:
    """Return the docstrings and comments of a module."""
    found = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found += [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(found)


def test_folders_are_small() -> None:
    """A folder's modules are read at a glance."""
    folders = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert {str(folder): count for folder, count in folders.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("name", texts)
def test_modules_are_short_and_open_with_a_noun(name: str) -> None:
    """A module has at most `MOST_LINES` lines, and its docstring opens with a noun phrase."""
    assert texts[name].count("\n") <= MOST_LINES
    docstring = ast.get_docstring(ast.parse(texts[name])) or ""
    assert not OPENERS.match(docstring), docstring.partition("\n")[0]


def test_words_are_plain() -> None:
    """The word "what" is rare in docstrings and comments."""
    words = re.findall(r"[A-Za-z']+", " ".join(map(words_of, texts.values())))
    assert 1000 * sum(word.lower() == "what" for word in words) / len(words) <= MOST_WHATS
