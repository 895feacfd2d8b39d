"""Every code block of the pages: run with a real daemon, read against the command table, or excused by a reason."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import ROOT, Home, arrow_aborted
from ..waiting import soak
from .blocks import (
    Group,
    code_spans,
    commands,
    groups,
    matches,
    page_directory,
    pages,
    read,
    targets,
)

PAGES = pages()
MARK = "~~~ next block ~~~"
READ_ONLY = {"cat", "cd", "export", "head", "ls", "pg_dump", "rm"}
"""Programs that `sh` blocks may show beside `atoll` and `make`."""


@pytest.fixture(scope="module", autouse=True)
def _daemon_of_the_pages(_session_home: Home) -> Iterator[None]:
    """End the daemon that a page's program has started: its `HOME` is a page's directory, where no Python is found."""
    yield
    _session_home.stop()


def run_python(group: Group, home: Home, directory: Path, name: str) -> None:
    """Run a program that stands in one or more blocks, and compare the outputs that the page shows."""
    text = ""
    for block in group.blocks:
        before = block.directives.get("before", "")
        text += f"{before}\n" if before else ""
        text += block.text
        text += f"print({MARK!r}, flush=True)\n" if block is not group.blocks[-1] else ""
    program = directory / name
    program.write_text(text)
    done = run([sys.executable, str(program)], home, directory)
    fails = "fails" in group.blocks[-1].directives
    failed = done.returncode != 0 and not arrow_aborted(done)
    assert failed == fails, f"{group.first}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    printed = done.stdout.split(f"{MARK}\n")
    for index, block in group.outputs.items():
        shown = done.stderr if "stderr" in block.directives else printed[index]
        assert matches(block.text, shown), f"{block}: the page shows\n{block.text}\nprinted was\n{shown}\n{done.stderr}"


def run_console(group: Group, home: Home, directory: Path) -> None:
    """Run the commands of a block, and compare the outputs that the page shows."""
    block = group.first
    found = commands(block)
    for index, (command, shown) in enumerate(found):
        done = run(["bash", "-c", command], home, directory)
        fails = "fails" in block.directives and index == len(found) - 1
        said = f"{block}: `{command}`: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert (done.returncode != 0) == fails, said
        printed = done.stderr if "stderr" in block.directives else done.stdout
        assert not shown or matches(shown, printed), f"{said}\nthe page shows\n{shown}"


def run(command: list[str], home: Home, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of a page as a reader would, with this environment's programs first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=directory,
        env=home.environment({"PATH": path, "HOME": str(directory)}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def check_command(words: list[str]) -> None:
    """Check a command of Atoll's against the command table, without running it.

    Raises:
        AssertionError: no such command, option or number of arguments.
    """
    import cyclopts

    from atoll.cli.main import command_table

    arguments = words[1 : words.index(">") if ">" in words else None]
    if arguments[:1] == ["run"]:  # the function's own arguments come after the target
        target = next(index for index, word in enumerate(arguments[1:], 1) if not word.startswith("-"))
        arguments = arguments[: target + 1]
    try:
        command_table().parse_args(arguments, print_error=False, exit_on_error=False)
    except cyclopts.CycloptsError as error:
        raise AssertionError(f"`{shlex.join(words)}`: {error}") from error


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_tested_or_has_a_reason(page: str) -> None:
    """A block of a language without a test, and an output of nothing, need a reason."""
    groups(read(page))


@pytest.mark.parametrize("page", PAGES)
def test_programs_and_commands_of_a_page_work(page: str, shared_home: Home, tmp_path: Path) -> None:
    """The page's programs run in its order, in one directory, and print what the page shows."""
    directory = page_directory(tmp_path, page)
    directory.mkdir()
    for number, group in enumerate(groups(read(page))):
        block = group.first
        if "soak" in block.directives and not soak(False, True):
            continue
        if "file" in block.directives:
            target = directory / block.directives["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text)
        elif block.language == "python":
            run_python(group, shared_home, directory, f"program{number}.py")
        elif block.language == "console":
            run_console(group, shared_home, directory)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist(page: str) -> None:
    """Commands of blocks, run or not, are in the command table; targets are in the Makefile."""
    for group in groups(read(page)):
        block = group.first
        if block.language not in ("sh", "console") or "file" in block.directives:
            continue
        lines = block.text.splitlines() if block.language == "sh" else [command for command, _ in commands(block)]
        for line in lines:
            line = re.sub(r"\$\([^)]*\)", "WORD", line)  # the output of another command
            for part in re.split(r" \| | && ", line):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if not words:
                    continue
                if words[0] == "atoll":
                    check_command(words)
                elif words[0] == "make":
                    assert next(word for word in words[1:] if "=" not in word) in targets(), f"{block}: {line}"
                elif block.language == "sh":
                    assert words[0] in READ_ONLY, f"{block}: `{words[0]}` is neither run nor excused"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    """Inline code that begins with `atoll` or `make` names commands, options and targets that exist."""
    import cyclopts

    from atoll.cli import hosts
    from atoll.cli.main import command_table

    for span in code_spans(page):
        words = span.split()
        if words[0] == "make" and len(words) > 1:
            assert words[1] in targets() or words[1].isupper() or "=" in words[1], f"{page}: `{span}`"
        if words[0] != "atoll" or len(words) == 1 or words[1].isupper() or words[1].startswith("-"):
            continue
        names = [word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word)]
        chain, apps, _ = command_table().parse_commands(names)
        if page == "docs/reference/planned.md":
            assert not chain, f"{page}: `{span}` exists"
            continue
        assert chain, f"{page}: `{span}` is no command"
        known = (
            set(cyclopts.App().help_flags)
            | {name for argument in apps[-1].assemble_argument_collection() for name in argument.names}
            if apps[-1].default_command
            else None
        )
        if known is not None and chain[0] in hosts.COMMANDS:
            known.add("--host")
        for option in re.findall(r"(?<!\S)\[?(--?[a-z][a-z-]*)", span):
            if chain[0] != "run" and known is not None:
                assert option in known, f"{page}: `{span}` has no option {option}"


@pytest.mark.parametrize("page", PAGES)
def test_settings_of_a_page_are_read(page: str, tmp_path: Path) -> None:
    """`toml` blocks are read as `settings.toml`."""
    from atoll import settings

    for group in groups(read(page)):
        if group.first.language == "toml" and "file" not in group.first.directives:
            (tmp_path / "settings.toml").write_text(group.first.text)
            settings.load(tmp_path)


def test_blocks_without_a_test_are_found() -> None:
    """What the rules refuse: an unknown language, an output of nothing, a short reason, an unknown directive."""
    fence = "```"
    for text, message in (
        (f"{fence}rust\nfn\n{fence}\n", "no test for `rust`"),
        (f"{fence}text\nhello\n{fence}\n", "follows no program"),
        (f"<!-- not run: slow -->\n{fence}python\n1\n{fence}\n", "has no reason"),
        (f"<!-- sometimes -->\n{fence}python\n1\n{fence}\n", "unknown directive"),
        (f"<!-- continues -->\n{fence}python\n1\n{fence}\n", "nothing to continue"),
        (f"{fence}python\n1\n", "has no end"),
    ):
        with pytest.raises(ValueError, match=message):
            groups(read("page.md", text))


def test_outputs_are_compared() -> None:
    """`…` stands for any text of a line, alone for any lines; everything else is literal."""
    assert matches("a\nb\n", "a\nb\n\n")
    assert matches("built … in … s\n", "built 3f9c in 0.3 s\n")
    assert matches("first\n…\nlast\n", "first\n1\n2\nlast\n")
    assert matches("first\n…\nlast\n", "first\nlast\n")
    assert not matches("a\nb\n", "a\nb\nc\n")
    assert not matches("a.b\n", "axb\n")


def test_directives_belong_to_the_block_that_follows() -> None:
    """A comment counts for the next block, unless text stands between."""
    first, second = read(
        "page.md", "<!-- file: a.py -->\n\n```python\n1\n```\n<!-- fails -->\ntext\n```python\n2\n```\n"
    )
    assert (first.directives, second.directives) == ({"file": "a.py"}, {})


def test_commands_that_do_not_exist_are_found() -> None:
    """A wrong command, option or number of arguments is an error."""
    for wrong in ("atoll env lst", "atoll data ls --jsn", "atoll data restore"):
        with pytest.raises(AssertionError):
            check_command(shlex.split(wrong))
    check_command(shlex.split("atoll run hello.py::greet --name Ada"))


FROM_PAGES = [page for page in PAGES if page.startswith("docs/from/")]


@pytest.mark.parametrize("page", FROM_PAGES)
def test_equivalents_are_in_a_program_of_the_page(page: str) -> None:
    """Code on the right side of a table of equivalents is run by the page, or is a command that exists."""
    code = " ".join(" ".join(block.text for block in read(page)).split())
    rows = re.findall(r"^\| (.*) \| (.*) \|$", (ROOT / page).read_text(), flags=re.MULTILINE)[1:]
    assert len(rows) > 5
    for _, right in rows[1:]:
        for span in re.findall(r"`([^`]+)`", right):
            if span.startswith("atoll "):
                check_command(shlex.split(span)) if "::" in span else check_name(span)
            elif "/data" not in span:
                assert " ".join(span.split()) in code, f"{page}: no program of the page has `{span}`"


def check_name(span: str) -> None:
    """Check that a command exists, without its arguments."""
    from atoll.cli.main import command_table

    assert len(command_table().parse_commands(span.split()[1:])[0]) == len(span.split()) - 1, f"`{span}` is no command"
