"""The caller's environment variables stay in the caller's process, however a program reaches for them."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from os import environ
from typing import Any

import pytest

from atoll import isolated
from atoll.model.stored_call import StoredCall
from atoll.payload.captures import Captures

pytestmark = pytest.mark.as_user

NAME = "ATOLL_TEST_TOKEN"
SECRET = os.urandom(8).hex()
SCAN = f"""
    def find(value):
        import os
        return [value.get({NAME!r}), value.get("GIVEN"), value["HOME"], os.environ.get({NAME!r})]
"""

REFERENCES = {
    "a global": "from os import environ\ndef f(): return find(environ)",
    "a global of bytes": "from os import environb\ndef f(): return find(Decoded(environb))",
    "an attribute of an object": "import os\nclass Mod: environ = os.environ\ndef f(): return find(Mod.environ)",
    "an object graph": "import os\nD = {'a': [(os.environ,)]}\ndef f(): return find(D['a'][0][0])",
    "a default argument": "import os\ndef f(e=os.environ): return find(e)",
    "a keyword's default": "import os\ndef f(*, e=os.environ): return find(e)",
    "a closure": "import os\ndef make(e):\n    def f(): return find(e)\n    return f\nf = make(os.environ)",
    "a bound method": "import os\nget = os.environ.get\ndef f(): return [get(NAME), get('GIVEN'), get('HOME'), get(NAME)]",
    "a partial": "import os, functools\ndef g(e): return find(e)\nf = functools.partial(g, os.environ)",
    "a chain of mappings": "import os\nfrom collections import ChainMap\nC = ChainMap({}, os.environ)\ndef f(): return find(C)",
    "a copy that shares the variables": "import copy, os\nE = copy.copy(os.environ)\ndef f(): return find(E)",
    "a copy that sets the variables": "import copy, os\nE = copy.deepcopy(os.environ)\ndef f(): return find(E)",
    "a proxy": "import os, types\nP = types.MappingProxyType(os.environ)\ndef f(): return find(P)",
    "a proxy of a chain": (
        "import os, types, collections\nP = types.MappingProxyType(collections.ChainMap({}, os.environ))\n"
        "def f(): return find(P)"
    ),
    "a view": "import os\nV = os.environ.items()\ndef f(): return find(dict(V))",
    "a helper's global": "import os as o\nenviron = o.environ\ndef g(): return environ\ndef f(): return find(g())",
}


@pytest.fixture
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, SECRET)


def defined(source: str) -> Callable[..., Any]:
    """Return the function `f` of a program."""
    space: dict[str, Any] = {"__name__": "__main__", "NAME": NAME}
    decoded = "def Decoded(e): return {k.decode(): v.decode() for k, v in e.items()}\n"
    exec(compile(textwrap.dedent(SCAN) + decoded + source, "<program>", "exec"), space)
    function: Callable[..., Any] = space["f"]
    return function


def bytes_of(function: Any, *args: Any) -> bytes:
    """Return all bytes of a call, for its worker and for the daemon."""
    return StoredCall(*function._prepare().request(args, {})).to_bytes()


@pytest.mark.usefixtures("_secret")
@pytest.mark.parametrize("reference", REFERENCES)
def test_no_byte_of_them_travels(reference: str) -> None:
    """Neither with the function, nor with its `setup_function`, nor with an argument that refers to them."""
    function = defined(REFERENCES[reference])
    for travels in (
        bytes_of(isolated(function)),
        bytes_of(isolated(setup_function=function)(abs), 1),
        bytes_of(isolated(str), function),
    ):
        assert SECRET.encode() not in travels


@pytest.mark.usefixtures("_secret", "shared_home")
def test_a_function_finds_its_own_variables() -> None:
    """Each reference is the sandbox's `os.environ`, with those that `env` gives and none of the caller's."""
    for reference, source in REFERENCES.items():
        found = isolated(network="none", env={"GIVEN": "1"})(defined(source))()
        assert found == [None, "1", "/home/user", None], reference


@isolated(network="none", env={"GIVEN": "1"})
def change() -> tuple[bool, str, Any]:
    environ["SET_HERE"] = "x"
    return environ is os.environ, os.environ["SET_HERE"], environ


@pytest.mark.usefixtures("_secret", "shared_home")
def test_it_is_one_object_inside() -> None:
    """A change of the global is one of `os.environ`; as a result the variables are a dict, and set nothing here."""
    same, was_set, variables = change()
    assert (same, was_set) == (True, "x")
    assert type(variables) is dict
    assert (variables["GIVEN"], variables["SET_HERE"], NAME in variables) == ("1", "x", False)
    assert "SET_HERE" not in os.environ


def test_a_function_with_them_is_pickled_once() -> None:
    """Its pickle does not depend on the variables, so a warm call is as cheap as any."""
    captures = Captures(change.__wrapped__, frozenset({__name__}))
    assert captures.constant
    assert captures.unchanged()
