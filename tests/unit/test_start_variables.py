"""Variables that a sandbox must be started with, and those with which none could start."""

from __future__ import annotations

import pytest

from atoll import isolated
from atoll.model import start_variables
from atoll.model.specs import EnvironmentSpec, LeaseSpec
from atoll.node.start_files import PATH, start_files


@pytest.mark.parametrize(
    ("name", "early"),
    [
        ("LD_LIBRARY_PATH", True),
        ("LD_PRELOAD", True),
        ("GLIBC_TUNABLES", True),
        ("MALLOC_ARENA_MAX", True),
        ("PYTHONHASHSEED", True),
        ("PYTHONPATH", True),
        ("PYTHON_GIL", True),
        ("LC_ALL", True),
        ("LANG", True),
        ("PYTHONBREAKPOINT", False),
        ("PYTHONINSPECT", False),
        ("PYTHON path", False),
        ("OMP_NUM_THREADS", False),
        ("TZ", False),
        ("HOME", False),
        ("API_TOKEN", False),
    ],
)
def test_variables_of_a_start_are_told_from_others(name: str, early: bool) -> None:
    """Only what loader, allocator, Python and locale read at a start gives a function a sandbox of its own."""
    assert bool(LeaseSpec(EnvironmentSpec(), env=((name, "1"),)).start) is early


def test_libraries_that_are_preloaded_have_their_variables_before() -> None:
    """A variable that a library reads when it is loaded is one of the start where the function preloads modules."""
    env = (("OMP_NUM_THREADS", "1"), ("TOKEN", "x"))
    assert LeaseSpec(EnvironmentSpec(), env=env, preload=("numpy",)).start == (("OMP_NUM_THREADS", "1"),)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PYTHONHOME", "/usr", "standard library of another Python"),
        ("LD_TRACE_LOADED_OBJECTS", "1", "instead of running"),
        ("PYTHONHASHSEED", "abc", "`random` or a number"),
        ("PYTHONUTF8", "yes", "`0` or `1`"),
        ("PYTHONMALLOC", "mine", "one of default"),
        ("PYTHONTRACEMALLOC", "-1", "number of frames"),
        ("PYTHONINTMAXSTRDIGITS", "5", "at least 640"),
        ("PYTHONIOENCODING", "none-such", "an encoding"),
    ],
)
def test_a_variable_without_a_start_is_refused_by_name(name: str, value: str, words: str) -> None:
    """A variable with which Python would not start is refused where the function is defined, with the reason."""
    with pytest.raises(ValueError, match=name) as refused:
        isolated(env={name: value})(abs)
    assert words in str(refused.value)
    data = LeaseSpec(EnvironmentSpec(), env=((name, value),)).to_data()
    with pytest.raises(ValueError, match=name):
        LeaseSpec.from_data(data)


@pytest.mark.parametrize("value", ["", "0", "random", "4294967295"])
def test_values_that_python_takes_pass(value: str) -> None:
    """The check refuses nothing that Python itself takes."""
    start_variables.check("PYTHONHASHSEED", value)


def test_a_starter_exports_values_as_they_are() -> None:
    """The shell that starts an agent takes no value for a command; a sandbox without such variables has no shell."""
    assert start_files(()) == ((), ())
    starter, (file,) = start_files((("PYTHONPATH", "/a'$(id)\n/b"),))
    assert starter[0] == "/bin/sh"
    assert file.target == PATH
    assert file.content == b"export PYTHONPATH='/a'\"'\"'$(id)\n/b'\n"
