"""`environment.yml` files are read as a YAML library reads them, or refused with the line."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import isolated
from atoll.errors import EnvironmentBuildError
from atoll.sdk import conda_options
from atoll.sdk.environment_file import MAX_CHARACTERS, NotUnderstood, parse

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
    found = parse(EXPORTED)
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
        "a: ~\nb: null\nc:\n",
        "a: {}\n",
        'a: "x \\" y\\\\"\n',
        "\ufeffa: b\r\nc: d\r\n",
        "a: 'x''y'\n",
        "- a\n",
        "a: b\n---\n",
    ],
)
def test_forms_of_files(text: str) -> None:
    """Each form is understood as the library does, or refused."""
    try:
        found = parse(text)
    except NotUnderstood:
        assert text in ("- a\n", "a: b\n---\n")
    else:
        assert found == (yaml.safe_load(text) or {})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x b\nc: *x\n", 1),
        ("a: |\n  text\n", 1),
        ("a: b\n  c\n", 2),
        ("a:\n\t- b\n", 2),
        ("dependencies:\n  - a\n - b\n", 3),
        ("dependencies:\n  - python: 3.11: x\n", 2),
        ("a: [b\n  c]\n", 1),
        ("a: 'b\n", 1),
        ("a: {b: c}\n", 1),
        ("a: b\na: c\n", 2),
        ("a: 3.10\n", 1),
        ("a: yes\n", 1),
        ("dependencies:\n  - !!python/object:os.system x\n", 2),
        ("just text\n", 1),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, line: int) -> None:
    """The message names the line, and nothing is guessed."""
    with pytest.raises(NotUnderstood, match=f"^line {line}: "):
        parse(text)


_PIECES = st.sampled_from(
    [
        *("a", "b:", "- ", "-", ": ", "  ", "    ", "\n", "'", '"', "[", "]", ",", "#", " #", "pip:", "x=1", "{}", "~"),
        *("&", "*", "3.1", "yes", "\\", "a b", "::", "?", "|", ">", "!", "%", "@", "=", "<<", "---", "0x1", "1:2"),
        *("\t", "\r", ".5", "1e5"),
    ]
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(_PIECES, max_size=25).map("".join))
def test_whatever_is_understood_is_understood_as_the_library_does(text: str) -> None:
    """For any text, what is returned is what the library returns; there is no other error than `NotUnderstood`."""
    try:
        found = parse(text)
    except NotUnderstood:
        return
    assert found == (yaml.safe_load(text) or {})


def test_sizes_and_depths_are_bounded() -> None:
    """A file that is too long or nested without end is refused as any other."""
    with pytest.raises(NotUnderstood):
        parse("#" * (MAX_CHARACTERS + 1))
    with pytest.raises(NotUnderstood, match="deep"):
        parse("a:\n" + "- " * 1000 + "a")
    with pytest.raises(NotUnderstood, match="deep"):
        parse("".join(" " * depth + "a:\n" for depth in range(1400)))


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
    assert (spec.packages, spec.channels, spec.pip) == (("a", "b"), ("second", "first"), ("c", f"{tmp_path}/tree", "d"))
    path.write_text("dependencies: [e]\n")
    assert function.environment_spec().packages == ("e", "b")
    path.write_text(textwrap.dedent("dependencies:\n  - e\n - f\n"))
    with pytest.raises(EnvironmentBuildError, match="line 3"):
        function.environment_spec()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EnvironmentBuildError, match="cannot understand"):
        function.environment_spec()
