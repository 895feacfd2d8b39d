"""Types: both checkers give the expected answer for each line of a user's program, and every option is documented."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest

from atoll import IsolatedFunction, isolated
from atoll.sdk import option_types
from atoll.sdk.batches import Batches
from atoll.sdk.options import Options

from ..conftest import ROOT
from ..language_server import LanguageServer

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


@pytest.mark.parametrize("package", ["atoll", "fal_serverless"])
def test_checkers_see_every_public_name(package: str) -> None:
    """Each name of `__all__`, which is imported on first use, is imported for checkers too."""
    module = importlib.import_module(package)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {name.asname for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen - {None} == set(module.__all__) - {"__version__"}
    assert all(hasattr(module, name) for name in module.__all__)


# --- what a person reads in the editor and at the prompt ----------------------------------------------------------

OPTIONS = [field.name for field in dataclasses.fields(Options)]


def described(function: Any) -> list[str]:
    """Return the names in the section `Args` of a docstring."""
    section = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    return re.findall(r"^    (\w+): ", section, flags=re.MULTILINE)


def test_every_option_is_documented_everywhere() -> None:
    """The options of `Options`, of the checkers' types, of the docstring and of the reference are the same."""
    typed = set(option_types.ChangedOptions.__annotations__)
    assert typed | {"setup_function"} == set(OPTIONS), "add it to `sdk/option_types.py`"
    assert described(isolated) == [name for name in described(isolated) if name in OPTIONS], "unknown options"
    assert sorted(described(isolated)) == sorted(OPTIONS), "add it to the docstring of `isolated`"
    reference = (ROOT / "docs" / "reference" / "functions.md").read_text()
    table = reference.partition("## `@isolated")[2].partition("An isolated function")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == sorted(OPTIONS)


def test_the_editor_shows_the_documentation_of_each_option(tmp_path: Path) -> None:
    """Over an option's name in a call an editor shows its type and its documentation."""
    names = sorted(set(OPTIONS) - {"kind", "setup_function"})
    lines = [
        "from atoll import isolated",
        "f = isolated(lambda x: x)",
        "f.map([1], progress=None)",
        "f.map([1], ordered=True)",
    ]
    lines += [f"f.on({name}=None)" for name in names]
    with LanguageServer(tmp_path, "\n".join(lines)) as server:
        shown = {name: server.hover(line, 6) for line, name in enumerate(names, 4)}
        shown |= {name: server.hover(line, 14) for line, name in ((2, "progress"), (3, "ordered"))}
    for name, text in shown.items():
        kind, _, words = text.partition("---\n")
        assert f" {name}: " in kind, (name, text)
        assert re.match(r'[A-Z`"].{30,}\.', words), (name, text)


def test_signatures_name_the_options() -> None:
    """`help` and the prompt show the options of `isolated` and of `on` with their defaults."""
    function: Any = isolated
    parameters = inspect.signature(function).parameters
    assert list(parameters) == OPTIONS
    assert (parameters["kind"].default, parameters["keep_alive"].default, parameters["retries"].default) == (
        "virtualenv",
        10,
        0,
    )
    of_on = inspect.signature(isolated(len).on).parameters
    assert (next(iter(of_on)), set(of_on)) == ("host", set(OPTIONS))


def test_maps_options_are_those_that_it_takes() -> None:
    """The checkers' options of `map` and `starmap` are the parameters of both."""
    from atoll.sdk import batches

    for method in (Batches.map, Batches.starmap):
        named = {one.name for one in inspect.signature(method).parameters.values() if one.kind is one.KEYWORD_ONLY}
        source = inspect.getsource(batches).partition("class MapOptions")[2].partition("\nclass ")[0]
        assert named - {"return_exceptions"} == set(re.findall(r"^        (\w+): ", source, flags=re.MULTILINE))


def load() -> dict[str, int]:
    """Make the state of the function below."""
    return {}


def prepared(state: dict[str, int], x: int, y: str = "a") -> float:
    """Say what it does."""
    return float(x)


def test_a_function_says_how_it_is_called() -> None:
    """Its signature is that of a call, its documentation and annotations are those of the plain function."""
    plain, function = isolated(prepared), isolated(setup_function=load)(prepared)
    assert str(inspect.signature(plain)) == "(state: 'dict[str, int]', x: 'int', y: 'str' = 'a') -> 'float'"
    assert str(inspect.signature(function)) == "(x: 'int', y: 'str' = 'a') -> 'float'"
    assert get_type_hints(function) == {"state": dict[str, int], "x": int, "y": str, "return": float}
    assert inspect.getdoc(function) == "Say what it does."
    assert str(inspect.signature(isolated(setup_function=load)(lambda *all_of_them: None))) == "(*all_of_them)"
    assert "function" in inspect.signature(IsolatedFunction).parameters


def test_the_prompt_completes_options() -> None:
    """IPython offers the names of options and of arguments."""
    from IPython.core.completer import IPCompleter, provisionalcompleter

    def offered(text: str) -> set[str]:
        with provisionalcompleter():
            return {one.text for one in completer.completions(text, len(text))}

    space = {"isolated": isolated, "f": isolated(setup_function=load)(prepared)}
    completer: Any = IPCompleter(namespace=space, use_jedi=False)  # type: ignore[no-untyped-call]
    assert offered("isolated(kee") == {"keep_alive="}
    assert offered("f.on(timeo") == {"timeout="}
    assert {"x=", "y="} <= offered("f(")
    assert "state=" not in offered("f(s")
