"""Types: both checkers give the expected answer for each line of a user's program, and every option is documented."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ..conftest import ROOT

PROGRAMS = ROOT / "tests" / "typing"
CHECKERS = ("mypy", "pyright")


class Answers(NamedTuple):
    """A checker's answers for a program, by line."""

    types: dict[int, str]
    errors: dict[int, list[str]]


def expected(name: str, checker: str) -> Answers:
    """Return the answers that the program's comments name."""
    number = CHECKERS.index(checker)
    answers = Answers({}, {})
    for line, text in enumerate((PROGRAMS / name).read_text().splitlines(), 1):
        answer = text.partition("  #: ")[2]
        if answer.startswith("! "):
            answers.errors[line] = sorted(answer.split()[1 + number].split(","))
        elif answer:
            answers.types[line] = answer.split(" / ")[number if " / " in answer else 0]
    return answers


def short(text: str) -> str:
    """Return a type without the modules of its names."""
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text)


def read_mypy(output: str) -> dict[str, Answers]:
    """Return mypy's answers by the program's name."""
    found = {path.name: Answers({}, {}) for path in PROGRAMS.glob("*.py")}
    for entry in map(json.loads, output.splitlines()):
        answers = found[Path(entry["file"]).name]
        revealed = re.fullmatch(r'Revealed type is "(.*)"', entry["message"])
        if revealed:
            answers.types[entry["line"]] = short(revealed[1])
        elif entry["severity"] == "error":
            answers.errors.setdefault(entry["line"], []).append(entry["code"])
    return found


def read_pyright(output: str) -> dict[str, Answers]:
    """Return pyright's answers by the program's name."""
    found = {path.name: Answers({}, {}) for path in PROGRAMS.glob("*.py")}
    for entry in json.loads(output)["generalDiagnostics"]:
        answers, line = found[Path(entry["file"]).name], entry["range"]["start"]["line"] + 1
        revealed = re.fullmatch(r'Type of ".*" is "(.*)"', entry["message"], flags=re.DOTALL)
        if entry["severity"] == "information" and revealed:
            answers.types[line] = short(revealed[1])
        else:
            answers.errors.setdefault(line, []).append(entry["rule"])
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Answers]]:
    """The answers of both checkers, in strict mode, by checker and program; they run side by side, once."""
    place = tmp_path_factory.mktemp("checked")
    for path in PROGRAMS.glob("*.py"):
        shutil.copy(path, place)
    config = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "include": ["*.py"]}
    (place / "pyrightconfig.json").write_text(json.dumps(config))
    commands: dict[str, list[str]] = {
        "mypy": ["--strict", "--python-version", "3.11", "--cache-dir", str(place / "cache"), "--output", "json", "."],
        "pyright": ["--outputjson", "--pythonpath", sys.executable],
    }
    running = {
        name: subprocess.Popen([sys.executable, "-m", name, *options], cwd=place, stdout=subprocess.PIPE, text=True)
        for name, options in commands.items()
    }
    output = {name: process.communicate()[0] for name, process in running.items()}
    assert {name: process.returncode for name, process in running.items()} == dict.fromkeys(CHECKERS, 1), output
    return {"mypy": read_mypy(output["mypy"]), "pyright": read_pyright(output["pyright"])}


@pytest.mark.parametrize("checker", CHECKERS)
def test_each_line_has_the_expected_answer(answers: Any, checker: str) -> None:
    """Types are inferred, wrong calls are errors, and right ones are none."""
    found, wanted = answers[checker]["program.py"], expected("program.py", checker)
    assert found.types.keys() | found.errors.keys() == wanted.types.keys() | wanted.errors.keys()
    for line, answer in wanted.types.items():
        assert (line, found.types.get(line)) == (line, answer)
    for line, codes in wanted.errors.items():
        assert (line, sorted(set(found.errors.get(line, [])))) == (line, codes)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_typed_program_is_clean(answers: Any, checker: str) -> None:
    """A user's program in strict mode has no error."""
    assert answers[checker]["users_program.py"] == Answers({}, {})
