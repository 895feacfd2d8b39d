"""`environment.yml` files: the part of YAML that they are written in, without a library for all of it.

What is read is exact: a file is either understood as every YAML reader understands it, or refused with the line that
is not. Understood are comments, plain and quoted texts on one line, lists with `- ` and `[a, b]`, mappings
`name: value` as conda's files nest them. Not understood are anchors, tags, block texts, `{}` with something in it,
texts over several lines, and more than one document.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

MAX_CHARACTERS = 1 << 20
MAX_INDENTATION = 100

_NUMBERS = re.compile(
    r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN|[-+]?0b[01_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?0o?[0-7_]+"
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|[-+]?\.[0-9_]+([eE][-+]?[0-9]+)?"
    r"|\d{4}-\d\d?-\d\d?([Tt\s].*)?"
)
_WORDS = frozenset(("~", "null", "Null", "NULL"))
_TRUTH = frozenset(
    word
    for name in ("true", "false", "yes", "no", "on", "off", "y", "n")
    for word in (name, name.title(), name.upper())
)
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*):(?= |$)")
_SIMPLE_ESCAPES = {"\\": "\\", '"': '"', "/": "/", "n": "\n", "t": "\t"}


class NotUnderstood(ValueError):
    """The text is not a file of this form; the message names the line."""


class _Line(NamedTuple):
    number: int
    indent: int
    text: str


def parse(text: str) -> dict[str, Any]:
    """Return the mapping that the text is: values are texts, lists, mappings, or None.

    Numbers and truth values are refused where a text is meant: YAML readers would turn `3.10` into `3.1`.

    Raises:
        NotUnderstood: as the module says.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotUnderstood(f"it has more than {MAX_CHARACTERS} characters")
    lines = _lines(text)
    if not lines:
        return {}
    value, left = _mapping(lines, lines[0].indent, 0)
    if left < len(lines):
        raise _bad(lines[left], "its indentation fits nothing above")
    return value


def _lines(text: str) -> list[_Line]:
    found: list[_Line] = []
    begun = False
    for number, raw in enumerate(re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff")), 1):
        line = _Line(number, len(raw) - len(raw.lstrip(" ")), raw.strip(" "))
        if any(ord(character) < 32 or character in "\x7f\x85\u2028\u2029\ufeff" for character in raw):
            raise _bad(line, "it holds a tab or a control character")
        body = _without_comment(line)
        if body == "---" and not found and not begun and line.indent == 0:
            begun = True
            continue
        if body.startswith(("---", "...", "%")):
            raise _bad(line, "more than one document")
        if body:
            found.append(line._replace(text=body))
    return found


def _without_comment(line: _Line) -> str:
    """Return a line's text without the comment at its end; a `#` inside quotes is none."""
    quote = ""
    text = line.text
    position = 0
    while position < len(text):
        character = text[position]
        if quote:
            if quote == '"' and character == "\\":
                position += 1
            elif character == quote:
                quote = ""
        elif character in "'\"" and (position == 0 or text[position - 1] in " [,"):
            quote = character
        elif character == "#" and (position == 0 or text[position - 1] == " "):
            return text[:position].rstrip(" ")
        position += 1
    return text


def _block(lines: list[_Line], above: int, position: int, *, in_mapping: bool) -> tuple[Any, int]:
    """Read what is nested below a line with indentation `above`; None where nothing is."""
    if position == len(lines):
        return None, position
    line = lines[position]
    if above > MAX_INDENTATION:
        raise _bad(line, "it is nested too deep")
    if line.text == "-" or line.text.startswith("- "):
        if line.indent > above or (in_mapping and line.indent == above):
            return _list(lines, line.indent, position)
        return None, position
    if line.indent <= above:
        return None, position
    return _mapping(lines, line.indent, position)


def _mapping(lines: list[_Line], indent: int, position: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while position < len(lines) and lines[position].indent == indent:
        line = lines[position]
        key = _KEY.match(line.text)
        if key is None:
            raise _bad(line, "it is not `name: value`")
        if key[1] in found:
            raise _bad(line, f"`{key[1]}` is there twice")
        if key[1] in _WORDS or key[1] in _TRUTH:
            raise _bad(line, f"`{key[1]}` is not a text")
        rest = line.text[key.end() :].strip(" ")
        if rest:
            found[key[1]] = _value(line, rest)
            position += 1
        else:
            found[key[1]], position = _block(lines, indent, position + 1, in_mapping=True)
    _check_end(lines, indent, position)
    return found, position


def _list(lines: list[_Line], indent: int, position: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    while position < len(lines) and lines[position].indent == indent:
        line = lines[position]
        if line.text == "-":
            value, position = _block(lines, indent, position + 1, in_mapping=False)
            found.append(value)
            continue
        if not line.text.startswith("- "):
            break
        rest = line.text[2:].lstrip(" ")
        if _KEY.match(rest) or rest == "-" or rest.startswith("- "):
            # the mapping's own lines are indented as its first name is
            lines[position] = _Line(line.number, indent + len(line.text) - len(rest), rest)
            value, position = _block(lines, indent, position, in_mapping=False)
            found.append(value)
        else:
            found.append(_value(line, rest))
            position += 1
    _check_end(lines, indent, position)
    return found, position


def _check_end(lines: list[_Line], indent: int, position: int) -> None:
    if position < len(lines) and lines[position].indent > indent:
        raise _bad(lines[position], "its indentation fits nothing above")


def _value(line: _Line, text: str) -> Any:
    if text == "{}":
        return {}
    if text.startswith("["):
        if not text.endswith("]"):
            raise _bad(line, "a list `[…]` that does not end on its line")
        return _flow(line, text[1:-1].strip(" "))
    if text[0] in "'\"":
        value, rest = _quoted(line, text)
        if rest.strip(" "):
            raise _bad(line, "something follows the quoted text")
        return value
    return _plain(line, text)


def _flow(line: _Line, text: str) -> list[Any]:
    found: list[Any] = []
    value: str | None
    while text:
        if text[0] in "'\"":
            value, rest = _quoted(line, text)
            rest = rest.lstrip(" ")
        else:
            part = re.match(r"[^,\[\]{}]*", text)
            assert part is not None
            value, rest = _plain(line, part[0].strip(" ")), text[part.end() :]
        found.append(value)
        if rest and not rest.startswith(","):
            raise _bad(line, "a list `[…]` with more than texts in it")
        text = rest[1:].lstrip(" ")
    return found


def _quoted(line: _Line, text: str) -> tuple[str, str]:
    """Read a quoted text; return it and what follows."""
    if text[0] == "'":
        match = re.match(r"'((?:[^']|'')*)'", text)
        if match is None:
            raise _bad(line, "a quoted text that does not end on its line")
        return match[1].replace("''", "'"), text[match.end() :]
    match = re.match(r'"((?:[^"\\]|\\.)*)"', text)
    if match is None:
        raise _bad(line, "a quoted text that does not end on its line")
    if set(re.findall(r"\\(.)", match[1])) - set(_SIMPLE_ESCAPES):
        raise _bad(line, "an escape that is not understood")
    return re.sub(r"\\(.)", lambda found: _SIMPLE_ESCAPES[found[1]], match[1]), text[match.end() :]


def _plain(line: _Line, text: str) -> str | None:
    if not text:
        raise _bad(line, "an empty entry")
    if text in _WORDS:
        return None
    if text[0] in "&*!|>%@`{}[],#'\"" or text == "-" or text.startswith(("- ", "? ", "?")) or ": " in text:
        raise _bad(line, f"`{text[:40]}` is not a plain text")
    if text.endswith(":") or text.startswith(":") or text in ("=", "<<"):
        raise _bad(line, f"`{text[:40]}` is not a plain text")
    if text in _TRUTH or _NUMBERS.fullmatch(text):
        raise _bad(line, f"`{text[:40]}` would be a number or a truth value; put it in quotes")
    return text


def _bad(line: _Line, why: str) -> NotUnderstood:
    return NotUnderstood(f"line {line.number}: {why}")
