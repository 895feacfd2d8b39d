"""gitignore's patterns, against git itself where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoll.storage.files.ignore import IgnoreRules, Patterns, lines_of

FILES = [
    "x.py", "x.txt", "sub/x.py", "sub/x.txt", "sub/deep/x.py", "foo/bar/a", "foo/f", "foo/.env", "logs/a.log",
    "logs/d/keep.log", "data.d/cache/o", "data.d/v", "cache/o", "a/b/a", "ab/aab/b", "[a", "#c", "!x", "^a/-", "a*/?",
    "a]/\\", ".h/.h", "a b/foo ", "foo /x", "b/\tt", "x\\",
]  # fmt: skip
TEXTS = [
    "*\n!*/\n!*.py\n", "/*\n!/foo\n/foo/*\n!/foo/bar\n", "logs/*\n!logs/d\n", "**/\n!/foo\n", "**/\n!/foo/\n",
    "cache\n!*.d\n", "cache/\n!data.d/\n", ".env\n!foo/\n", "x.txt\n!sub\n", "*.txt\n!/sub/deep\n", "foo\n!/\n",
    "*\n!foo/\n!foo/**\n", "!\n[\n\\\n*\\\n", "foo\\ \n", "foo \n", "  \n", "\ufeff*.py\r\nx.txt\r\n", "a**/b", "/a**",
    "foo/**", "**/b", "a/**/a", "*/\n", "[!a]*\n", "[[:alpha:]]b/", "[]-a]", "[a-\\b]", "[z-a]", "[!z-a]", "[[:x:]]",
    "a//b", "./a", "/", "//", "\\!x\n\\#c", "\x85\x0b*.py\n", "?/", "*.py\r", "#x\n !x",
]  # fmt: skip
PARTS = ["a", "b", "ab", "foo", "x", "*", "**", "***", "?", "/", "/", "**/", "/**", ".", "!", "#", " ", "\\", "\\*",
         "\\/", "[ab]", "[!a]", "[^a]", "[a-b]", "[]a]", "[]-a]", "[[:alpha:]]", "[[:punct:]]", "[[:x:]]", "[[:]", "[a",
         "[z-a]", "[!z-a]", "[\\]]", "[--~]", "[&&a]", "\t", ".py", ".log"]  # fmt: skip
LINES = st.lists(st.lists(st.sampled_from(PARTS), max_size=5).map("".join), max_size=4).map("\n".join)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with `FILES`."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    root = tmp_path_factory.mktemp("repository")
    subprocess.run([git, "init", "-q", root], check=True)
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def kept_by_git(root: Path) -> set[str]:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-c", "core.excludesFile=", "ls-files", "-z", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=True).stdout
    return {path for path in os.fsdecode(listed).split("\0") if path and not path.endswith(".gitignore")}


def kept_by_rules(texts: dict[str, str]) -> set[str]:
    rules, kept = IgnoreRules(), set[str]()
    for directory, text in texts.items():
        rules.add(directory, text)
    for path in FILES:
        above = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 1)]
        if not any(rules.excludes(directory, True) for directory in above) and not rules.excludes(path, False):
            kept.add(path)
    return kept


def compare(root: Path, texts: dict[str, str]) -> None:
    try:
        for directory, text in texts.items():
            (root / directory / ".gitignore").write_bytes(text.encode())
        assert kept_by_rules(texts) == kept_by_git(root)
    finally:
        for directory in texts:
            (root / directory / ".gitignore").unlink(missing_ok=True)


@pytest.mark.parametrize("text", TEXTS)
def test_known_files_mean_what_they_mean_to_git(repository: Path, text: str) -> None:
    """Idioms, spellings that git takes otherwise than one thinks, and malformed patterns keep what git keeps."""
    compare(repository, {"": text})


@settings(max_examples=150, deadline=None)
@given(LINES, LINES)
@example("*\n!*/", "!*.py")
@example("x.*", "!x.py")
def test_any_files_mean_what_they_mean_to_git(repository: Path, above: str, below: str) -> None:
    """Whatever two files say, one in a directory of the other, the same names are kept as by git."""
    compare(repository, {"": above, "sub": below})


@pytest.mark.parametrize(
    ("lines", "path", "is_directory", "verdict"),
    [
        (["*", "!*/", "!*.py"], "sub", True, False),
        (["*", "!*/", "!*.py"], "sub/x.py", False, False),
        (["*", "!*/", "!*.py"], "sub/x.txt", False, True),
        ([".env", "!prod.d/"], "prod.d/.env", False, True),
        (["cache", "!*.d"], "data.d/cache", True, True),
        (["build/"], "build", False, None),
        (["build/"], "build/x", False, None),
        (["a", "!/"], "a", True, True),
        (["["], "[", False, None),
        (["?"], "é", False, True),
        (["new\nline"], "d/new\nline", False, True),
    ],
)
def test_verdicts(lines: list[str], path: str, is_directory: bool, verdict: bool | None) -> None:
    """The last pattern that matches the entry itself decides; without one nobody has."""
    assert Patterns(lines).verdict(path, is_directory) is verdict


def test_lines() -> None:
    """A line ends at a line feed, with or without a carriage return, and nowhere else."""
    assert lines_of("\ufeffa\r\nb\x0bc\u2028d\re\n") == ["a", "b\x0bc\u2028d\re", ""]
