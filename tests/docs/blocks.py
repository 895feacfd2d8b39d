"""Code blocks of the pages: read, told apart, and checked for a test or a reason.

A block may have directives, HTML comments between it and the text before it:

| directive | meaning |
| --- | --- |
| `<!-- not run: REASON -->` | the block is neither run nor compared |
| `<!-- soak: REASON -->` | run with `SOAK=1` alone, its output too |
| `<!-- file: NAME -->` | written beside the page's programs under this name, not run |
| `<!-- continues -->` | the program goes on with this block, in the same process |
| `<!-- fails -->` | the program, or the last command, ends with a status other than 0 |
| `<!-- stderr -->` | the block shows stderr instead of stdout |
| `<!-- before: CODE -->` | lines of Python that the program begins with; readers do not see them |

`python` blocks are programs. `console` blocks are commands after `$ ` with their output. `sh` blocks are commands that
are read, not run: commands, options and targets of make must exist. `toml` blocks are settings. A `text` block after a
program is its output. In an output, `…` stands for any text, on a line of its own for any lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..conftest import ROOT

DIRECTIVE = re.compile(r"<!-- ([a-z ]+?)(?:: (.*?))? -->", re.DOTALL)
KNOWN = {"not run", "soak", "file", "continues", "fails", "stderr", "before"}
FENCE = re.compile(r"^( *)```(\S*)\s*$")
SHORTEST_REASON = 12
"""Characters of a reason."""


@dataclass
class Block:
    """A fenced block of a page.

    Args:
        page: its path, relative to the repository.
        line: of its fence, counted from 1.
        language: the word behind the fence.
        text: its lines, without the fence's indentation.
        directives: names, and their texts.
    """

    page: str
    line: int
    language: str
    text: str
    directives: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Group:
    """Blocks that are one run: a program in one or more blocks, or commands, and the outputs that the page shows."""

    blocks: list[Block]
    outputs: dict[int, Block] = field(default_factory=dict)
    """For each block's index in the group, the block with its output."""

    @property
    def first(self) -> Block:
        """The block that begins the run."""
        return self.blocks[0]


def pages() -> list[str]:
    """Return the pages whose blocks are tested: README and `docs/`, without decisions (they are history)."""
    found = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "decisions" not in path.parts]
    return [str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *found]]


def read(page: str, text: str | None = None) -> list[Block]:
    """Return the blocks of a page, in order.

    Raises:
        ValueError: a directive is unknown, or a fence is left open.
    """
    blocks: list[Block] = []
    pending = ""
    current: Block | None = None
    indent = ""
    lines = (ROOT / page).read_text("utf-8").splitlines() if text is None else text.splitlines()
    for number, line in enumerate(lines, 1):
        match = FENCE.match(line)
        if current is not None:
            if match and match[1] == indent and not match[2]:
                blocks.append(current)
                current = None
            else:
                current.text += line.removeprefix(indent) + "\n"
        elif match:
            indent = match[1]
            current = Block(page, number, match[2], "", _directives(page, number, pending))
            pending = ""
        elif line.lstrip().startswith("<!--") or (pending and "-->" not in pending.rpartition("<!--")[2]):
            pending += line.removeprefix(indent) + "\n"
        elif line.strip():
            pending = ""
    if current is not None:
        raise ValueError(f"{current}: the block has no end")
    return blocks


def _directives(page: str, line: int, text: str) -> dict[str, str]:
    found = {match[1]: (match[2] or "").strip() for match in DIRECTIVE.finditer(text)}
    found.pop("insert", None)
    if unknown := set(found) - KNOWN:
        raise ValueError(f"{page}:{line}: unknown directive `{unknown.pop()}`")
    return found


def groups(blocks: list[Block]) -> list[Group]:
    """Return the runs of a page: programs with their continuations, commands, files, settings; each with its output.

    Raises:
        ValueError: a block has neither a test nor a reason.
    """
    found: list[Group] = []
    last: Group | None = None
    for block in blocks:
        if "not run" in block.directives:
            if len(block.directives["not run"]) < SHORTEST_REASON:
                raise ValueError(f"{block}: `not run` has no reason")
            continue
        if block.language in ("text", "") and "file" not in block.directives:
            if last is None or len(last.blocks) - 1 in last.outputs:
                raise ValueError(f"{block}: an output follows no program; name the reason: `<!-- not run: … -->`")
            last.outputs[len(last.blocks) - 1] = block
            continue
        if "continues" in block.directives:
            if last is None or block.language != "python":
                raise ValueError(f"{block}: nothing to continue")
            last.blocks.append(block)
            continue
        if block.language not in ("python", "console", "sh", "toml") and "file" not in block.directives:
            raise ValueError(f"{block}: no test for `{block.language}`; name the reason: `<!-- not run: … -->`")
        group = Group([block])
        found.append(group)
        last = group if block.language == "python" and "file" not in block.directives else None
    return found


def matches(expected: str, printed: str) -> bool:
    """Return whether an output fits the one that a page shows; `…` stands for any text."""
    pattern = ""
    for line in expected.rstrip().splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part.rstrip() if last else part) for part, last in _parts(line)) + r" *\n"
    return re.fullmatch(pattern, printed.rstrip() + "\n") is not None


def _parts(line: str) -> list[tuple[str, bool]]:
    parts = line.split("…")
    return [(part, index == len(parts) - 1) for index, part in enumerate(parts)]


def commands(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a `console` block, each with the output that the page shows after it."""
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found and found[-1][0].endswith("\\"):
            found[-1] = (found[-1][0][:-1] + line.removeprefix("> ").strip(), "")
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
        else:
            raise ValueError(f"{block}: the output comes before the first command")
    return found


def code_spans(page: str) -> list[str]:
    """Return the inline code of a page, outside of blocks."""
    text = (ROOT / page).read_text("utf-8")
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def page_directory(root: Path, page: str) -> Path:
    """Return the directory in which a page's programs run."""
    return root / page.removesuffix(".md").replace("/", "-").lower()
