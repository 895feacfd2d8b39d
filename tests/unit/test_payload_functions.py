"""Functions are pickled as they are at each call, and a worker keeps only what cannot change."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import SerializationError, WorkerDied
from atoll.payload import pickling
from atoll.payload import values as agent_payload
from atoll.payload.functions import FunctionPickler

from .bare_worker import BareWorker, run_script


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareWorker]:
    with BareWorker(tmp_path_factory.mktemp("worker")) as running:
        yield running


def interactive(source: str) -> dict[str, Any]:
    """Run source as a prompt would: what it defines belongs to no file."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "<prompt>", "exec"), space)
    return space


CHANGES = {
    "a global is rebound": ("N = 1\ndef f(): return N", "N = 2"),
    "a global is rebound to an equal object of another type": ("N = 1\ndef f(): return repr(N)", "N = True"),
    "a list changes": ("L = [1]\ndef f(): return sum(L)", "L.append(5)"),
    "a list in a tuple changes": ("T = ([1],)\ndef f(): return T[0][0]", "T[0][0] = 7"),
    "a dict changes": ("D = {'a': 1}\ndef f(): return D['a']", "D['a'] = 2"),
    "the order of a dict changes": ("D = {'a': 1, 'b': 2}\ndef f(): return list(D)", "D['a'] = D.pop('a')"),
    "an object's attribute changes": ("class C: x = 1\nc = C()\ndef f(): return c.x", "c.x = 3"),
    "a class's attribute changes": ("class C: x = 1\ndef f(): return C.x", "C.x = 3"),
    "a helper is rebound": ("def g(): return 1\ndef f(): return g()", "def g(): return 2"),
    "a helper's code is replaced": ("def g(): return 1\ndef f(): return g()", "g.__code__ = (lambda: 3).__code__"),
    "a helper's helper is rebound": ("def h(): return 1\ndef g(): return h()\ndef f(): return g()", "h = lambda: 9"),
    "a helper's global changes": ("N = 1\ndef g(): return N\ndef f(): return g()", "N = 2"),
    "a default is replaced": ("def f(x=1): return x", "f.__defaults__ = (2,)"),
    "a mutable default changes": ("def f(x=[]): return len(x)", "f.__defaults__[0].append(1)"),
    "a keyword default is replaced": ("def f(*, x=1): return x", "f.__kwdefaults__['x'] = 2"),
    "an attribute of a helper is set": (
        "def g(): return getattr(g, 'x', 0)\ndef f(): return g()",
        "g.x = 5",
    ),
    "a wrapped function is rebound": (
        "import functools\ndef g(): return 1\nh = functools.partial(lambda k, x: k() + x, g, 1)\ndef f(): return h()",
        "h = functools.partial(lambda k, x: k() + x, g, 2)",
    ),
    "the keywords of a partial change": (
        "import functools\nh = functools.partial(int, base=8)\ndef f(): return h('11')",
        "h.keywords['base'] = 2",
    ),
    "a closure's cell is rebound": (
        "def make():\n  n = 1\n  def f(): return n\n  def put(v):\n    nonlocal n\n    n = v\n  return f, put\nf, put = make()",
        "put(4)",
    ),
    "a closure's cell is filled later": (
        (
            "def make():\n  def f():\n    try: return n\n    except NameError: return 'none'\n"
            "  def put(v):\n    nonlocal n\n    n = v\n  if 0: n = 1\n  return f, put\nf, put = make()"
        ),
        "put(4)",
    ),
    "a missing name is defined": (
        "def f():\n  try: return later()\n  except NameError: return 'none'",
        "def later(): return 1",
    ),
    "a builtin is shadowed": ("def f(): return len('abc')", "len = lambda x: 99"),
    "a shadowed builtin is uncovered": ("len = lambda x: 99\ndef f(): return len('abc')", "del len"),
    "a global of a nested function changes": ("N = 1\ndef f(): return (lambda: N)()", "N = 2"),
    "a global of a class body inside changes": ("N = 1\ndef f():\n  class C: x = N\n  return C.x", "N = 2"),
    "a global of a comprehension changes": ("N = 1\ndef f(): return [N for _ in 'ab']", "N = 2"),
    "a docstring is replaced": ("def g(): 'a'\ndef f(): return g.__doc__", "g.__doc__ = 'b'"),
    "a cached helper is rebound": (
        "import functools\n@functools.lru_cache\ndef g(x): return x\ndef f(): return g(1)",
        "@functools.lru_cache(maxsize=5)\ndef g(x): return (x, g.cache_parameters()['maxsize'])",
    ),
    "what a cached helper uses changes": (
        "import functools\nN = 1\n@functools.lru_cache\ndef g(x): return x + N\ndef f(): return g(1)",
        "N = 2; g.cache_clear()",
    ),
    "a list in a slice changes": ("S = slice([0], None)\ndef f(): return S.start[0]", "S.start[0] = 9"),
    "the time zone of a datetime changes": (
        (
            "import datetime\nclass Zone(datetime.tzinfo):\n  n = 1\n  def utcoffset(self, at): return datetime.timedelta(hours=self.n)\n"
            "Z = Zone()\nD = datetime.datetime(2020, 1, 1, tzinfo=Z)\ndef f(): return str(D.utcoffset())"
        ),
        "Z.n = 5",
    ),
    "an annotation is changed": (
        "def g(x: int): ...\ndef f(): return str(g.__annotations__)",
        "g.__annotations__['x'] = str",
    ),
    "a set changes": ("S = {1}\ndef f(): return sorted(S)", "S.add(2)"),
    "a name that eval may use is rebound": ("N = 1\nS = {2}\ndef f(): return eval('N' + '')", "N = 2"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_by_the_next_call(name: str) -> None:
    """What the function uses is, at each call, what it is in the caller, also after calls that changed nothing."""
    define, change = CHANGES[name]
    space = interactive(define)
    pickler = FunctionPickler(space["f"])
    for _ in range(3):
        assert pickling.loads(pickler.dumps()[0])() == space["f"]()
    before = space["f"]()
    exec(compile(change, "<prompt>", "exec"), space)
    assert space["f"]() != before, "the change changes nothing"
    assert pickling.loads(pickler.dumps()[0])() == space["f"]()
    assert pickling.loads(pickler.dumps()[0])() == space["f"]()


def test_a_submodule_that_is_imported_later_is_imported_by_the_worker(worker: BareWorker, tmp_path: Path) -> None:
    """A submodule that only the caller's later imports make reachable is there at the next call."""
    sys.modules.pop("xml.sax.saxutils", None)
    xml = importlib.import_module("xml.sax")
    if hasattr(xml, "saxutils"):
        del xml.saxutils
    space = interactive("import xml.sax\ndef f(): return hasattr(xml.sax, 'saxutils') and xml.sax.saxutils.escape('<')")
    pickler = FunctionPickler(space["f"])
    assert worker.call(pickler) is False
    importlib.import_module("xml.sax.saxutils")
    assert worker.call(pickler) == "&lt;"


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return x + 1",
        "K = 'a', 2, (3.0, b'x')\ndef helper(x): return x, K\ndef f(x=1, *, y='z'): return helper(x)",
        "import json, os.path\nfrom collections import OrderedDict\ndef f(): return json, os.path.join, OrderedDict, len",
        "def f(n): return 1 if n < 2 else n * f(n - 1)",
        "import re, pathlib\nP = re.compile('a'), pathlib.Path('/x')\ndef f(): return P",
        "def make(n):\n  def f(): return n\n  return f\nf = make(3)",
        "f = len",
        "f = lambda x: x",
        "def f(x: list[int], y: 'str') -> dict[str, int]: return {}",
    ],
)
def test_an_unchanged_function_is_not_pickled_again(source: str) -> None:
    """While nothing changes, the same bytes are given again, and a worker may keep the function."""
    pickler = FunctionPickler(interactive(source)["f"])
    first, reusable = pickler.dumps()
    assert pickler.dumps()[0] is first
    assert reusable


CLASS_CHANGES = {
    "a method is replaced": (
        "class C:\n  def m(self): return 1\ndef f(): return C().m()",
        "C.m = lambda self: 2",
    ),
    "a method's code is replaced": (
        "class C:\n  @staticmethod\n  def m(): return 1\ndef f(): return C.m()",
        "C.m.__code__ = (lambda: 2).__code__",
    ),
    "a property is replaced": (
        "class C:\n  @property\n  def p(self): return 1\ndef f(): return C().p",
        "C.p = property(lambda self: 2)",
    ),
    "a list in a class changes": ("class C: x = [1]\ndef f(): return C.x[0]", "C.x[0] = 2"),
    "a base's attribute changes": ("class B: x = 1\nclass C(B): ...\ndef f(): return C.x", "B.x = 2"),
    "a field of a dataclass gets another default": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n  x: int = 1\ndef f(): return dataclasses.fields(C)[0].default",
        "C.__dataclass_fields__['x'].default = 2",
    ),
}


@pytest.mark.parametrize("name", CLASS_CHANGES)
def test_a_change_of_a_class_is_seen_by_the_next_call(name: str, worker: BareWorker) -> None:
    """Classes that did not change are not pickled again; the worker has each change."""
    define, change = CLASS_CHANGES[name]
    space = interactive(define)
    pickler = FunctionPickler(space["f"])
    before = space["f"]()
    assert worker.call(pickler) == before
    exec(compile(change, "<prompt>", "exec"), space)
    assert space["f"]() != before, "the change changes nothing"
    assert worker.call(pickler) == space["f"]()


def test_a_list_that_becomes_short_enough_travels_with_eval() -> None:
    """What has stayed behind for its size comes with the first call after it has become small."""
    space = interactive("L = list(range(999))\ndef f(): return len(eval('L' + ''))")
    pickler = FunctionPickler(space["f"])
    first, _ = pickler.dumps()
    assert pickler.dumps()[0] is first
    del space["L"][3:]
    assert pickling.loads(pickler.dumps()[0])() == 3


@pytest.mark.parametrize("change", ["N = 2", "C.__name__ = 'D'", "C.__bases__ = (B,)"])
def test_a_class_is_pickled_anew_after_a_change_outside_of_it(change: str) -> None:
    """Its name, its bases and the globals of its methods count too."""
    space = interactive(
        "N = 1\nclass A: ...\nclass B: ...\nclass C(A):\n  @property\n  def p(self): return N\ndef f(): return C().p"
    )
    pickler = FunctionPickler(space["f"])
    first, _ = pickler.dumps()
    assert pickler.dumps()[0] is first
    exec(compile(change, "<prompt>", "exec"), space)
    assert pickler.dumps()[0] != first


def test_a_function_that_lists_subclasses_is_pickled_for_each_call() -> None:
    """Another subclass changes nothing that the pickle was made of."""
    space = interactive("class B: ...\ndef f(): return B.__subclasses__()")
    pickler = FunctionPickler(space["f"])
    assert pickler.dumps()[0] is not pickler.dumps()[0]


@pytest.mark.parametrize(
    "source",
    [
        "class C:\n  x = {1}\n  def m(self): ...\n  @property\n  def p(self): ...\ndef f(): return C",
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n  x: list[int] = dataclasses.field(default_factory=list)\ndef f(): return C",
        "A, B, C = {1}, list[int], [2]\nfrom atoll import isolated\nw = isolated(keep_alive=1)\ndef f(x): return eval(x)",
    ],
)
def test_classes_and_names_for_eval_that_did_not_change_are_not_pickled_again(source: str) -> None:
    """Each call of such a function gets the same bytes, and unpickles them for itself."""
    pickler = FunctionPickler(interactive(source)["f"])
    first, reusable = pickler.dumps()
    assert pickler.dumps()[0] is first
    assert not reusable


@pytest.mark.parametrize(
    "source",
    [
        "N = 0\ndef f():\n  global N\n  N += 1\n  return N",
        "N = 0\ndef g():\n  global N\n  N += 1\n  return N\ndef f(): return g()",
        "N = 0\ndef f():\n  def inner():\n    global N\n    N += 1\n    return N\n  return inner()",
        "N = 0\ndef f():\n  r = N\n  globals()['N'] = N + 1\n  return r",
        "L = []\ndef f():\n  L.append(1)\n  return len(L)",
        "def f(x=[]):\n  x.append(1)\n  return len(x)",
        "def g(): pass\ng.n = 0\ndef f():\n  g.n += 1\n  return g.n",
        "def f():\n  f.n = getattr(f, 'n', 0) + 1\n  return f.n",
        "def f():\n  r = hasattr(f, 'n')\n  setattr(f, 'n', 1)\n  return r",
        "def make():\n  n = 0\n  def f():\n    nonlocal n\n    n += 1\n    return n\n  return f\nf = make()",
        (
            "def make():\n  n = 0\n  def f():\n    def g():\n      nonlocal n\n      n += 1\n      return n\n    return g()\n"
            "  return f\nf = make()"
        ),
        "class C: n = 0\ndef f():\n  C.n += 1\n  return C.n",
        "class C: n = 0\nc = C()\ndef f():\n  c.n += 1\n  return c.n",
        "import functools\ncalls = []\n@functools.cache\ndef g(): return object()\ndef f(): return g.cache_info().misses or g() and 0",
        "def f():\n  exec('N = globals().get(\"N\", 0) + 1', globals())\n  return N",
        "def h(): pass\ndef f(g=h):\n  g.n = getattr(g, 'n', 0) + 1\n  return g.n",
        "def f(k=(lambda: 0,)):\n  k[0].n = getattr(k[0], 'n', 0) + 1\n  return k[0].n",
    ],
)
def test_no_call_sees_what_another_left_behind(source: str, worker: BareWorker) -> None:
    """Calls in one worker that change what the function captured all begin with the caller's values."""
    pickler = FunctionPickler(interactive(source)["f"])
    assert len({worker.call(pickler) for _ in range(3)}) == 1
    assert pickler.dumps()[1] is False


def test_a_worker_keeps_a_function_that_cannot_change() -> None:
    """The same reusable bytes give the same object; others a new one."""
    data, reusable = FunctionPickler(interactive("def f(): return 1")["f"]).dumps()
    assert reusable
    assert agent_payload.loads_function(bytearray(data), True) is agent_payload.loads_function(data, True)
    assert agent_payload.loads_function(data, False) is not agent_payload.loads_function(data, False)


def test_the_kept_functions_are_bounded() -> None:
    """A worker that is given ever new functions does not keep them all."""
    for number in range(100):
        data, _ = pickling.dumps(interactive(f"def f(): return {number}")["f"])
        assert agent_payload.loads_function(data, True)() == number
    assert len(agent_payload._functions) <= 16


def test_programs_helpers_classes_and_closures_reach_the_worker(tmp_path: Path) -> None:
    """Everything that a script defines, before or after the function, is there in the worker, which has no script."""
    out = run_script(
        tmp_path,
        """
import functools, pathlib, enum, dataclasses, sys
from tests.unit.bare_worker import BareWorker

def f(n):
    class Local:
        scale = FACTOR
    return Point(n, later(n)), fib(20), Color.RED, Local.scale, Point(1, 2).norm, len("abc")

@dataclasses.dataclass
class Point:
    x: int
    y: int
    @functools.cached_property
    def norm(self):
        return self.x * self.x + self.y * self.y
    def bump(self):
        global COUNT
        COUNT += 1
        return COUNT

@functools.lru_cache(maxsize=7)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

class Color(enum.Enum):
    RED = 1

COUNT = 0
FACTOR = 10
def later(n):
    return n * FACTOR

with BareWorker(pathlib.Path(sys.argv[1])) as worker:
    for _ in range(2):
        point, number, color, scale, norm, length = worker.call(f, 2)
        assert type(point) is Point and point == Point(2, 20), point
        assert (number, scale, norm, length) == (6765, 10, 5, 3)
        assert color is Color.RED
    assert point.bump() == 1 and COUNT == 1, "methods still use this program's globals"
    assert worker.call(lambda p: isinstance(p, Point) and p.norm, Point(3, 4)) == 25
print("done", "cloudpickle.cloudpickle" in sys.modules and "BareWorker needs it")
""",
        str(tmp_path),
    )
    assert out.startswith("done")


def test_the_public_cloudpickle_is_neither_imported_nor_met(tmp_path: Path) -> None:
    """A caller pickles without importing `cloudpickle`; a worker whose environment has another one is not disturbed."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import sys; from atoll.payload.functions import FunctionPickler as P; P(lambda: 1).dumps();"
                "assert '_atoll_cloudpickle' in sys.modules and 'cloudpickle' not in sys.modules"
            ),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    other = tmp_path / "site" / "cloudpickle"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    space = interactive("def g(x): return x\ndef f(x): return g(x)")
    with BareWorker(tmp_path, tmp_path / "site") as worker:
        assert worker.call(space["f"], 5) == 5


def test_modules_registered_for_pickling_by_value_travel_by_value(worker: BareWorker, tmp_path: Path) -> None:
    """`cloudpickle.register_pickle_by_value` of the public package counts."""
    import cloudpickle

    module = types.ModuleType("registered_module")
    exec("def g(): return 'here'", module.__dict__)
    sys.modules["registered_module"] = module
    try:
        space = interactive("from registered_module import g\ndef f(): return g()")
        pickler = FunctionPickler(space["f"])
        with pytest.raises(SerializationError, match="registered_module"):
            worker.call(pickler)
        cloudpickle.register_pickle_by_value(module)
        try:
            assert worker.call(FunctionPickler(space["f"])) == "here"
        finally:
            cloudpickle.unregister_pickle_by_value(module)
    finally:
        del sys.modules["registered_module"]


def test_a_module_that_the_worker_lacks_is_named(worker: BareWorker) -> None:
    """The error says which module is missing, that it is the worker's side, and what to do."""
    space = interactive("import hypothesis\ndef f(): return hypothesis")
    with pytest.raises(SerializationError) as caught:
        worker.call(space["f"])
    assert "`hypothesis`" in caught.value.message
    assert "`requirements`" in caught.value.hint
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert worker.call(interactive("def f(): return 1")["f"]) == 1


@pytest.mark.parametrize("where", ["function", "argument"])
def test_an_error_of_ours_in_an_imported_module_is_not_wrapped(where: str, tmp_path: Path) -> None:
    """What a call at a module's top level raises while the worker imports the module says all, and says it once."""
    (tmp_path / "calling.py").write_text(
        "import sys\nif 'tests' not in sys.modules:\n  from atoll.errors import WorkerDied\n"
        "  raise WorkerDied('it ended', hint='look', exit_status=3)\nclass C: pass\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        held = importlib.import_module("calling").C
        f = interactive("def f(value=None): return g\ng = None")["f"]
        f.__globals__["g"] = held if where == "function" else None
        with BareWorker(tmp_path, tmp_path) as worker, pytest.raises(WorkerDied) as caught:
            worker.call(f, *([held()] if where == "argument" else []))
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["calling"]
    assert str(caught.value) == "it ended\nhint: look"
    assert caught.value.exit_status == 3
    assert caught.value.__cause__ is None


LOCK = r"is a `_thread.lock`: cannot pickle '_thread.lock' object"
REFUSED = {
    "an item of a global": (
        "STATE = {'lock': lock}\ndef f(): return STATE",
        r"its global `STATE` is a `dict`: .*\(`STATE\['lock'\]` is a `_thread.lock`\)",
    ),
    "a global that a nested function uses": ("def f(): return (lambda: lock)()", f"its global `lock` {LOCK}"),
    "a variable": ("def f():\n  l = lock\n  return lambda: l\nf = f()", f"its variable `l` {LOCK}"),
    "a default": ("def f(a, b=lock): ...", f"its default `b` {LOCK}"),
    "a keyword's default": ("def f(a=1, *, b=lock): ...", f"its default `b` {LOCK}"),
    "a helper's global": (
        "def helper(): return lock\ndef f(): return helper()",
        f"it uses `helper`, whose global `lock` {LOCK}",
    ),
    "a helper's helper's global": (
        "def deep(): return lock\ndef helper(): return deep()\ndef f(): return helper()",
        f"it uses `helper`, which uses `deep`, whose global `lock` {LOCK}",
    ),
    "what is used both ways": (
        "def helper(): return lock\ndef f(): return helper(), lock",
        f"its global `lock` {LOCK}",
    ),
    "helpers that use each other": (
        "def one(): return two(), f\ndef two(): return one(), lock\ndef f(): return one()",
        f"it uses `one`, which uses `two`, whose global `lock` {LOCK}",
    ),
    "a method": (
        "class C:\n  def m(self): return lock\ndef f(): return C()",
        f"it uses `C`, which uses `m`, whose global `lock` {LOCK}",
    ),
    "a property of an object's class": (
        "class C:\n  @property\n  def m(self): return lock\nc = C()\ndef f(): return c",
        f"it uses `c`, which uses `m`, whose global `lock` {LOCK}",
    ),
    "a class's attribute": ("class C: held = lock\ndef f(): return C", f"it uses `C`, whose attribute `held` {LOCK}"),
    "a partial's function": (
        "import functools\ndef g(x): return lock\nh = functools.partial(g, 1)\ndef f(): return h",
        f"it uses `h`, whose global `lock` {LOCK}",
    ),
    "another isolated function": (
        "from atoll import isolated\n@isolated\ndef g(): return lock\ndef f(): return g",
        f"it uses `g`, whose global `lock` {LOCK}",
    ),
    "a cached function": (
        "import functools\n@functools.cache\ndef g(): return lock\ndef f(): return g",
        f"it uses `g`, whose global `lock` {LOCK}",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_a_function_from_travelling_is_named(name: str) -> None:
    """The error names the function, and the chain that leads to what cannot be pickled."""
    source, words = REFUSED[name]
    space = interactive("import threading\nlock = threading.Lock()\n" + source)
    with pytest.raises(SerializationError, match=r"the function `.*f.*` cannot be sent: " + words):
        FunctionPickler(space["f"]).dumps()


# --- functions of the project's modules -------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").write_text("")
    monkeypatch.syspath_prepend(str(root))
    before = set(sys.modules)
    yield root
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(root)):
            del sys.modules[name]


TASKS = """
import pytest, dataclasses  # the worker has no pytest
N = 1
@dataclasses.dataclass
class Box:
    value: int
    def read(self): return self.value + N
def helper(): return N
def f(x=None): return Box(helper()), isinstance(x, Box) and x.read()
class Wrapper:
    def __init__(self, function): self.__wrapped__ = function
    @property
    def __atoll_function__(self): return self.__wrapped__
plain, f = f, Wrapper(f)
"""


def test_the_function_s_own_module_travels_by_value(project: Path, worker: BareWorker) -> None:
    """It need not be importable in the worker, rebinding is seen, and instances are of the caller's own classes."""
    (project / "tasks_value.py").write_text(TASKS)
    tasks = importlib.import_module("tasks_value")
    pickler = FunctionPickler(tasks.plain)
    box, read = worker.call(pickler, tasks.Box(4))
    assert type(box) is tasks.Box
    assert (box.value, read) == (1, 5)
    vars(tasks)["N"] = 10
    box, read = worker.call(pickler, tasks.Box(4))
    assert (box.value, read) == (10, 14)
    vars(tasks)["N"] = 20
    assert box.read() == 30, "a result does not replace the methods of the caller's classes"


def test_an_edited_module_is_imported_as_it_is_on_the_disk(project: Path, tmp_path: Path) -> None:
    """Once the file was edited since the import, the worker runs what the file says; put back, what is in memory."""
    from atoll.sdk.modules.discover import Sources

    file = project / "tasks_edited.py"
    text = TASKS.replace("import pytest, ", "import ")
    file.write_text(text)
    tasks = importlib.import_module("tasks_edited")
    pickler, sources = FunctionPickler(tasks.plain), Sources(tasks.plain)
    for number, (now, expected) in enumerate([(text, 1), (text.replace("N = 1", "N = 5"), 5)]):
        file.write_text(now)
        with BareWorker(tmp_path / f"worker{number}") as worker:
            worker.install(sources.current())
            box, read = worker.call(pickler, tasks.Box(1))
            assert (box.value, read) == (expected, 1 + expected)
            assert type(box) is tasks.Box
    assert pickler.by_value == frozenset()


def test_an_edit_is_seen_where_nothing_in_memory_changed(project: Path, tmp_path: Path) -> None:
    """A function whose captures are as they were is not taken from them once its file was edited."""
    from atoll.sdk.modules.discover import Sources

    file = project / "tasks_plain.py"
    file.write_text("def f(): return 1\n")
    tasks = importlib.import_module("tasks_plain")
    pickler = FunctionPickler(tasks.f)
    first, _ = pickler.dumps()
    assert pickler.dumps()[0] is first
    file.write_text("def f(): return 22\n")
    with BareWorker(tmp_path) as worker:
        worker.install(Sources(tasks.f).current())
        assert worker.call(pickler) == 22


def test_a_function_that_is_gone_from_the_edited_file_is_named(project: Path, tmp_path: Path) -> None:
    """The call fails with an error that names what the file no longer has."""
    from atoll.sdk.modules.discover import Sources

    file = project / "tasks_gone.py"
    file.write_text("def f(): return 1\n")
    tasks = importlib.import_module("tasks_gone")
    pickler = FunctionPickler(tasks.f)
    file.write_text("def other(): return 1\n")
    with BareWorker(tmp_path) as worker:
        worker.install(Sources(tasks.f).current())
        with pytest.raises(SerializationError, match="has no attribute 'f'"):
            worker.call(pickler)


def test_a_module_that_cannot_travel_by_value_travels_by_name(project: Path, tmp_path: Path) -> None:
    """A class with a lock in it, which no pickle holds, is imported by the worker instead."""
    from atoll.sdk.modules.discover import Sources

    (project / "tasks_lock.py").write_text(
        "import threading\nclass C:\n  lock = threading.Lock()\n  x = 3\ndef f(c=None): return C() if c is None else c.x\n"
    )
    tasks = importlib.import_module("tasks_lock")
    pickler = FunctionPickler(tasks.f)
    with BareWorker(tmp_path) as worker:
        worker.install(Sources(tasks.f).current())
        assert type(worker.call(pickler)) is tasks.C
        assert worker.call(pickler, tasks.C()) == 3


def test_functions_of_installed_packages_travel_by_name(worker: BareWorker) -> None:
    """A function of the standard library is imported by the worker."""
    assert worker.call(textwrap.dedent, " a") == "a"
    assert worker.call(functools.partial(textwrap.indent, prefix="-"), "a") == "-a"
    assert worker.call("abc".upper) == "ABC"
    assert worker.call(dict, a=1) == {"a": 1}


def test_asserts_that_pytest_has_rewritten_work_without_pytest(worker: BareWorker) -> None:
    """A function of a test module runs in a worker without pytest, and a failing `assert` says what failed."""

    def f(x: int) -> int:
        assert x == len("abc") or x in (5, 6), f"{x} is wrong"
        assert x != 5
        return x

    assert worker.call(f, 3) == 3
    with pytest.raises(AssertionError, match="4 is wrong"):
        worker.call(f, 4)
    with pytest.raises(AssertionError, match="5 != 5"):
        worker.call(f, 5)


def test_an_isolated_function_among_the_globals_is_seen_like_a_helper() -> None:
    """A nested isolated function, and one that calls itself, keep the fast path, and show what changes in them."""
    from atoll.sdk.decorator import isolated
    from atoll.sdk.function import IsolatedFunction

    space = interactive("N = 1\ndef g(): return N\ndef f(): return g.local()\ndef again(): return again")
    space["g"] = isolated(space["g"])
    pickler = FunctionPickler(space["f"])
    first, reusable = pickler.dumps()
    assert reusable
    assert pickler.dumps()[0] is first
    assert pickling.loads(first)() == 1
    space["N"] = 2
    assert pickling.loads(pickler.dumps()[0])() == 2
    space["g"] = isolated(lambda: 3)
    assert pickling.loads(pickler.dumps()[0])() == 3
    plain, space["again"] = space["again"], isolated(space["again"])
    assert isinstance(pickling.loads(FunctionPickler(plain).dumps()[0])(), IsolatedFunction)


def test_an_object_that_answers_to_nothing_is_pickled_anew() -> None:
    """A captured object whose class raises at every question hinders neither pickling nor freshness."""
    space = interactive(
        "class Meta(type):\n  @property\n  def __module__(cls): raise RuntimeError\n"
        "class Hidden:\n  def __getattr__(self, name): raise RuntimeError(name)\n  def __reduce__(self): return int, ('7',)\n"
        "h = Hidden()\ndef f(): return h"
    )
    assert pickling.loads(FunctionPickler(space["f"]).dumps()[0])() == 7
