"""`environment.yml` files are read as YAML whose scalars are texts, or refused with the line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import isolated
from atoll.errors import EnvironmentBuildError
from atoll.node import mounted_files
from atoll.sdk import conda_options

EXPORTED = """
# made by hand
---
name: work
channels:   # in order
- conda-forge
- "file:///srv/channel"
dependencies:
  - python=3.11
  - numpy >=1.2,<2   # not 2
  - 'pytorch[version=">=2", build=*cuda*]'
  - conda-forge::libblas=*=*openblas
  - pip
  - pip:
    - rich==13.7
    - "-e ./tree"   # comment
    - git+https://host.example/x.git#egg=x
prefix: /home/me/envs/work
"""


def test_an_exported_file_is_read_as_it_is_meant() -> None:
    """Comments, quotes, versions and the nested list of pip give what the library gives."""
    found = conda_options.parse(EXPORTED)
    assert found == yaml.safe_load(EXPORTED)
    contents = conda_options.read_mapping(found, "/srv/project")
    assert contents.packages[:2] == ("python=3.11", "numpy >=1.2,<2")
    assert contents.channels == ("conda-forge", "file:///srv/channel")
    assert contents.pip == ("rich==13.7", "-e /srv/project/tree", "git+https://host.example/x.git#egg=x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "channels: [conda-forge, 'a b', \"c\"]\n",
        "channels: []\ndependencies:\n",
        "dependencies:\n- a\n- pip:\n  - b\n  - c\n- d\n",
        "dependencies:\n  -   a\n  - pip:\n      - b\n",
        "dependencies:\n  -\n    pip:\n      - b\n",
        "a: it's\nb: x#y\nc: 'x # y' # z\nd: x:y\n",
        "a:\n  b:\n    c: d\n  e: f\ng: h\n",
        "a: ~\nb: null\nc:\nd: 'null'\ne: ''\n",
        "a: {}\n",
        "a: {b: c}\n",
        'a: "x \\" y\\\\"\n',
        "\ufeffa: b\r\nc: d\r\n",
        "a: 'x''y'\n",
        "a: &x b\nc: *x\n",
        "a: |\n  text\n",
        "a: b\n  c\n",
        "a: [b\n  c]\n",
        "- a\n",
        "just text\n",
    ],
)
def test_forms_of_files(text: str) -> None:
    """Each form is understood as the library understands it."""
    assert conda_options.parse(text) == (yaml.safe_load(text) or {})


@pytest.mark.parametrize("text", ["3.10", "3.11", "yes", "0x10", "1e5", "2024-01-01", "1:30", "!!int 3"])
def test_numbers_and_truth_values_stay_texts(text: str) -> None:
    """`3.10` is not `3.1`, and nothing but text is made of an entry."""
    assert conda_options.parse(f"dependencies: [{text}]") == {"dependencies": [text.rpartition(" ")[2]]}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a:\n\t- b\n", 2),
        ("dependencies:\n  - a\n - b\n", 3),
        ("dependencies:\n  - python: 3.11: x\n", 2),
        ("a: 'b\n", 2),
        ("a: b\na: c\n", 2),
        ("a: b\n---\nc: d\n", 2),
        ("a: *x\n", 1),
        ("a: &x [*x]\n", 1),
        ("? [a]\n: b\n", 1),
    ],
)
def test_a_file_that_is_not_understood_is_refused_with_its_line(text: str, line: int) -> None:
    """The message names the line."""
    with pytest.raises(ValueError, match=f"^line {line}: "):
        conda_options.parse(text)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [echo]", "!!python/name:os.system x", "!own x"])
def test_tags_make_nothing_but_texts(tag: str) -> None:
    """No tag runs or imports anything."""
    assert conda_options.parse(f"a: {tag}\n") in ({"a": ["echo"]}, {"a": "x"})


_PIECES = st.sampled_from(
    [
        *("a", "b:", "- ", "-", ": ", "  ", "    ", "\n", "'", '"', "[", "]", ",", "#", " #", "pip:", "x=1", "{}", "~"),
        *("&", "*", "3.1", "yes", "\\", "a b", "::", "?", "|", ">", "!", "%", "@", "=", "<<", "---", "0x1", "1:2"),
        *("\t", "\r", ".5", "1e5", "\0"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES, max_size=25).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    """For any text there is a value or a `ValueError`, of the text and of the options in it."""
    with contextlib.suppress(ValueError):
        conda_options.read_mapping(conda_options.parse(text))


def test_sizes_and_depths_are_bounded() -> None:
    """A file that is too long or nested without end is refused as any other, and no message repeats it."""
    with pytest.raises(ValueError, match="characters"):
        conda_options.parse("#" * (conda_options.MAX_CHARACTERS + 1))
    with pytest.raises(ValueError, match="deep"):
        conda_options.parse("[" * 5000)
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)]
    with pytest.raises(ValueError, match="`dependencies` has") as refused:
        conda_options.read_mapping({"dependencies": [conda_options.parse("\n".join(lines))["b11"]]})
    assert len(str(refused.value)) < 1000


def test_a_place_without_pyyaml_is_named(tmp_path: Path) -> None:
    """Where neither PyYAML nor Atoll's copy of it can be imported, the error says what to install."""
    (tmp_path / "environment.yml").write_text("dependencies: [a]\n")
    program = f"""
        import sys
        sys.modules["yaml"] = sys.modules["_atoll_yaml"] = None
        from atoll.sdk import conda_options
        try:
            conda_options.read_file({str(tmp_path / "environment.yml")!r})
        except Exception as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "PyYAML is not installed here\nhint: add `pyyaml`" in done.stdout


def test_the_copy_for_sandboxes_reads_files_alone(tmp_path: Path) -> None:
    """The mounted files hold a PyYAML that works without the installed one, and is not met by functions."""
    library, hold = mounted_files.hold(tmp_path / "lib")
    os.close(hold)
    (tmp_path / "environment.yml").write_text("dependencies: [a, {pip: [b]}]\n")
    program = f"""
        import sys
        sys.path.insert(0, {str(library)!r})
        from atoll.sdk import conda_options
        print(*conda_options.read_file({str(tmp_path / "environment.yml")!r})[:3], "yaml" in sys.modules)
    """
    command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "('a',) () ('b',) False\n", done.stderr


# --- the options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "conda", "requirements": ["numpy"]}, r"`requirements` goes with kind `virtualenv`.*`packages="),
        ({"packages": ["numpy"]}, r'`packages` goes with `kind="conda"`.*`requirements='),
        ({"kind": "virtualenv", "env_yml": "x.yml"}, r'`env_yml` goes with `kind="conda"`'),
        ({"kind": "virtualenv", "channels": ["x"]}, r'`channels` goes with `kind="conda"`'),
        ({"kind": "virtualenv", "pip": ["x"]}, r'`pip` goes with `kind="conda"`'),
        ({"kind": "conda", "env_yml": "x.yml", "env_dict": {}}, "one of `env_yml` and `env_dict`"),
        ({"kind": "conda", "packages": "numpy"}, "`packages` must be a list"),
        ({"kind": "conda", "env_dict": ["numpy"]}, "`env_dict` must be a dict"),
        ({"kind": "conda", "env_yml": 3}, "`env_yml` must be a path"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    """Options of the other kind and of the wrong type are a `TypeError` that says what to write."""
    with pytest.raises(TypeError, match=message):
        isolated(**options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"dependencies": [3]}, "dependencies"),
        ({"dependencies": [{"conda": []}]}, "pip"),
        ({"channels": "conda-forge"}, "`channels` is not a list"),
        ({"dependancies": []}, "unknown name `dependancies`"),
        ({"variables": {"A": "b"}}, "env="),
    ],
)
def test_a_malformed_env_dict_is_said_at_once(value: dict[str, object], message: str) -> None:
    """It is a `ValueError` where the function is defined."""
    with pytest.raises(ValueError, match=message):
        isolated("conda", env_dict=value)


def test_on_changes_the_kind_with_its_options() -> None:
    """`.on` goes from one kind to the other when the other's options are taken back."""
    function = isolated(requirements=["numpy"])(len)
    with pytest.raises(TypeError, match="requirements"):
        function.on(kind="conda")
    assert function.on(kind="conda", requirements=[], packages=["numpy"]).environment_spec().packages == ("numpy",)


def test_a_file_is_read_when_the_call_is_made(tmp_path: Path) -> None:
    """An edit counts from the next call on; options are added, and their channels rank first."""
    path = tmp_path / "environment.yml"
    function = isolated("conda", env_yml=str(path), packages=["b"], channels=["second"], pip=["d"])(len)
    with pytest.raises(EnvironmentBuildError, match="no such file"):
        function.environment_spec()
    path.write_text("channels: [first]\ndependencies:\n  - a\n  - pip:\n    - c\n    - ./tree\n")
    spec = function.environment_spec()
    assert (spec.packages, spec.channels) == (("a", "b"), ("second", "first"))
    assert [entry.partition(" #")[0] for entry in spec.pip] == ["c", f"{tmp_path}/tree", "d"]  # a stamp is a comment
    path.write_text("dependencies: [e]\n")
    assert function.environment_spec().packages == ("e", "b")
    path.write_text(textwrap.dedent("dependencies:\n  - e\n - f\n"))
    with pytest.raises(EnvironmentBuildError, match="line 3"):
        function.environment_spec()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EnvironmentBuildError, match="cannot understand"):
        function.environment_spec()
