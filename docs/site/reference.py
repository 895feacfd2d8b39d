"""Reference pages from the code: public names, the command line, settings, examples, decisions."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^(Args|Raises|Returns|Yields|Attributes):\s*$")
FOR_ATOLL = {
    "IsolatedFunction": {"environment_spec", "host", "lease_spec", "plain_calls", "refusal", "request"},
    "LocalHost": None,
    "Volume": {"find", "read", "scan", "set_attributes", "status", "statuses", "sums", "write"},
}
"""Methods that serve Atoll's own modules: they have no place in the reference. None: all of a class."""


def sections(docstring: str) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring, and its sections (`Args`, `Raises`, …), each without its indentation."""
    text: list[str] = []
    found: dict[str, list[str]] = {}
    lines = text
    for line in docstring.splitlines():
        if match := SECTION.match(line):
            lines = found.setdefault(match[1], [])
        elif lines is not text and line and not line.startswith(" "):
            lines = text
            lines.append(line)
        else:
            lines.append(line)
    return "\n".join(text).strip(), {name: inspect.cleandoc("\n" + "\n".join(part)) for name, part in found.items()}


def entries(section: str) -> dict[str, str]:
    """Return the entries of a section: names (several by commas count as one key) and their one-line texts."""
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        match = re.match(r"^([\w*.]+(?:, [\w*.]+)*):\s+(.*)$", line)
        if match and not line.startswith(" "):
            name = match[1]
            found[name] = match[2]
        elif name:
            found[name] += " " + line.strip()
    return found


def _docstring(value: Any) -> list[str]:
    text, parts = sections(inspect.getdoc(value) or "")
    lines = [text, ""]
    for name, part in parts.items():
        lines.append(f"**{name}**")
        lines.append("")
        known = entries(part)
        if known:
            lines += [f"- {', '.join(f'`{one}`' for one in key.split(', '))}: {said}" for key, said in known.items()]
        else:
            lines.append(" ".join(part.split()))
        lines.append("")
    return lines


def _signature(name: str, value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return f"{name}(…)"
    parameters = [one for one in signature.parameters.values() if one.name != "self"]
    text = str(signature.replace(parameters=parameters)).replace("'", "")
    return re.sub(r"<(?:object|function|class) [^>]*>", "…", f"{name}{text}")


def python() -> str:
    """Return the reference of the names that `atoll` exports, from signatures and docstrings."""
    import atoll

    lines: list[str] = []
    for name in sorted(set(atoll.__all__) - {"__version__", "errors"}, key=str.lower):
        value = getattr(atoll, name)
        lines += [f"## `{name}`", ""]
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            lines += [f"An instance of `{type(value).__name__}`. {sections(inspect.getdoc(value) or '')[0]}", ""]
            continue
        if inspect.isfunction(value) or "__init__" in vars(value):
            lines += ["```text", _signature(name, value), "```", ""]
        lines += _docstring(value)
        if inspect.isclass(value):
            lines += _methods(name, value)
    return "\n".join(lines)


def _methods(owner: str, value: type[Any]) -> list[str]:
    own = FOR_ATOLL.get(owner, set())
    lines: list[str] = []
    for name, member in inspect.getmembers(value):
        if name.startswith("_") or own is None or name in own or not inspect.getdoc(member):
            continue
        owners = [cls for cls in value.__mro__ if name in vars(cls)]
        if not owners[0].__module__.startswith("atoll"):
            continue  # of a class of Python's
        if isinstance(member, property):
            lines += [f"### `{owner}.{name}`", "", *_docstring(member)]
        elif callable(member):
            lines += [f"### `{owner}.{name}`", "", "```text", _signature(name, member), "```", "", *_docstring(member)]
    return lines


def settings() -> str:
    """Return the table of `settings.toml`, from the dataclasses that read it and their docstrings."""
    from atoll import settings as module

    lines: list[str] = []
    for group in dataclasses.fields(module.Settings):
        cls = group.default_factory
        if not dataclasses.is_dataclass(cls) or not isinstance(cls, type):
            continue
        text, parts = sections(inspect.getdoc(cls) or "")
        lines += [
            f"### `[{group.name}]`",
            "",
            text,
            "",
            "| option | type | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        said = {one: meaning for names, meaning in entries(parts["Args"]).items() for one in names.split(", ")}
        for option in dataclasses.fields(cls):
            default = option.default if option.default is not dataclasses.MISSING else ""
            meaning = said[option.name].replace("|", "\\|")
            lines.append(f"| `{group.name}.{option.name}` | {_value(option.name, default)} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _value(name: str, value: Any) -> str:
    """Return a default as TOML has it; large sizes with their unit."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, (tuple, list)):
        return f"`{list(value)}`"
    if name.endswith("_bytes") and value >= 1 << 20:
        return (
            f"`{value}` ({value / (1 << 30):g} GiB)" if value >= 1 << 30 else f"`{value}` ({value / (1 << 20):g} MiB)"
        )
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def index_variables() -> str:
    """Return the list of the caller's variables that choose package indexes."""
    from atoll.settings import INDEX_VARIABLES

    return ", ".join(f"`{name}`" for name in INDEX_VARIABLES)


def command_line() -> str:
    """Return the reference of all commands, from the table that the program itself reads."""
    from atoll.cli.main import command_table

    text = str(command_table().generate_docs())
    text = text[text.index("## atoll ") :]
    text = re.sub(r"^(#+) (atoll [\w -]+)$", r"\1 `\2`", text, flags=re.MULTILINE)
    text = text.replace("```console", "```text")
    return re.sub(r"\n{3,}", "\n\n", text)


def examples() -> str:
    """Return a page with the programs of `examples/`."""
    lines = ["# Examples", "", "Read whole programs; the test suite runs each of them.", ""]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text("utf-8")
        said = ast.get_docstring(ast.parse(code)) or ""
        lines += [f"## {path.name} {{#{path.stem}}}", "", said, "", "```python", code.rstrip(), "```", ""]
    return "\n".join(lines)


def decisions() -> str:
    """Return a page that lists the decisions."""
    lines = ["# Decisions", "", "Find the reason behind a choice: one page for each that someone will question.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        title = path.read_text("utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


INSERTS: dict[str, Callable[[], str]] = {
    "python": python,
    "settings": settings,
    "index variables": index_variables,
    "command line": command_line,
}
"""Texts that a page takes where it says `<!-- insert: NAME -->`."""
