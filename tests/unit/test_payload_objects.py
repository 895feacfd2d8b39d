"""Objects that a function refers to: those of a process, those with an identity, and functions made by libraries."""

from __future__ import annotations

import contextvars
import copy
import functools
import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from atoll import cached, isolated
from atoll.errors import SerializationError
from atoll.payload import pickling
from atoll.payload.answers import snapshot
from atoll.payload.functions import FunctionPickler
from atoll.payload.reducers import kept, type_parameters

from .bare_worker import BareWorker, run_script


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareWorker]:
    """One worker for many calls."""
    with BareWorker(tmp_path_factory.mktemp("worker")) as worker:
        yield worker


def defined(source: str) -> dict[str, Any]:
    """Return the globals of a program whose functions and classes travel by value."""
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(source, "<prompt>", "exec"), space)
    return space


# --- objects of which a process has one -------------------------------------------------------------------------

OWN = {
    "sys": ["path", "modules", "meta_path", "stdin", "stdout", "stderr", "__stdout__", "flags", "version_info"],
    "warnings": ["filters"],
    "random": ["_inst"],
    "logging": ["root", "lastResort"],
    "os": ["environ", "environb"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in OWN.items() for name in names])
@pytest.mark.parametrize("as_", ["global", "cell", "default"])
def test_what_a_process_has_once_is_the_workers_own(module: str, name: str, as_: str, worker: BareWorker) -> None:
    """A function that has imported such an object `from` its module sees the one of its own process."""
    lines = {
        "global": f"def f():\n  import {module}\n  return {name} is {module}.{name}",
        "cell": f"def make(it):\n  def f():\n    import {module}\n    return it is {module}.{name}\n  return f\nf = make({name})",
        "default": f"def f(it={name}):\n  import {module}\n  return it is {module}.{name}",
    }
    pickler = FunctionPickler(defined(f"from {module} import {name}\n{lines[as_]}")["f"])
    assert worker.call(pickler) is True
    assert len(pickler.dumps()[0]) < 2000  # nothing of it travels


VARIABLES = """
import collections, functools, operator, os, types
from posix import environ as variables
get, part, proxy = variables.get, functools.partial(variables.get, KEY), types.MappingProxyType(variables)
views, chain = [variables.values(), variables.items(), variables.keys()], collections.ChainMap({}, variables)
class Settings: pass
settings = Settings()
settings.raw = [variables]
Settings.raw = variables
def f(*given): return [KEY in found for found in (*given, settings.raw[0], proxy, chain, views[2])], get(KEY), part(), len(views)
def g(*given): return given[0] is os.environ._data
def by_text(): return eval("variables.get(KEY)")
"""


def test_the_variables_do_not_travel_in_any_way(worker: BareWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dict inside `os.environ` is the worker's own, wherever a pickle holds it."""
    monkeypatch.setenv("ATOLL_TEST_SECRET", "hidden-value")
    space = defined("KEY = b'ATOLL_TEST_' + b'SECRET'" + VARIABLES)
    variables = space["variables"]
    assert worker.call(space["f"], variables, {"a": variables}["a"]) == ([False] * 6, None, None, 3)
    assert worker.call(space["g"], variables) is True
    assert worker.call(space["by_text"]) is None
    pickles = [
        *(FunctionPickler(space[name]).dumps()[0] for name in ("f", "g", "by_text")),
        FunctionPickler(space["f"]).dumps_arguments((variables, [variables], space["settings"]), {"it": variables})[0],
        *(
            snapshot([(name, space[name])], frozenset(), space).pickles[0]
            for name in ("variables", "views", "get", "part")
        ),
    ]
    assert not [data for data in pickles if b"hidden-value" in data]
    assert b"environ" not in FunctionPickler(defined("def f(): return 1")["f"]).dumps()[0]  # it may set no variable


def test_the_methods_of_hidden_instances_are_the_workers_own(worker: BareWorker) -> None:
    """`from random import random` and `seed` are of one generator, also in the worker."""
    space = defined(
        "from random import random, seed\n"
        "def f():\n  import random as own\n  seed(1)\n  first = random()\n  own.seed(1)\n  return first == own.random()"
    )
    assert worker.call(space["f"]) is True


def test_the_main_thread_is_the_workers(worker: BareWorker) -> None:
    """A thread object that stands for the main one does so in the worker."""
    space = defined(
        "import threading\nmain = threading.main_thread()\n"
        "def f():\n  import threading as own\n  return main is own.current_thread()"
    )
    assert worker.call(space["f"]) is True


def test_a_handler_travels_without_its_lock(worker: BareWorker) -> None:
    """A handler on standard error writes to the worker's; its formatter and level are kept."""
    space = defined(
        "import logging\nhandler = logging.StreamHandler()\nhandler.setFormatter(logging.Formatter('%(message)s!'))\n"
        "handler.setLevel(10)\n"
        "def f():\n  import logging, sys\n  made = logging.LogRecord('n', 20, '', 1, 'said', (), None)\n"
        "  return handler.stream is sys.stderr, handler.format(made), handler.level, handler.acquire()"
    )
    assert worker.call(space["f"]) == (True, "said!", 10, None)


def test_a_logger_of_a_programs_class_keeps_it(worker: BareWorker) -> None:
    """It is the worker's logger of that name, with the methods of the class."""
    source = (
        "import logging\nclass Own(logging.Logger):\n  def trace(self, text): return self.name + text + self.mark\n"
        "logging.setLoggerClass(Own)\nlog = logging.getLogger('tests.own')\nlogging.setLoggerClass(logging.Logger)\n"
        "log.mark = '!'\ndef f():\n  import logging\n  return log.trace(': said'), log is logging.getLogger('tests.own')"
    )
    assert worker.call(defined(source)["f"]) == ("tests.own: said!", True)


# --- objects that are compared by identity ----------------------------------------------------------------------


def test_an_object_is_itself_in_every_pickle(worker: BareWorker) -> None:
    """An `object()` is the same for two functions, as an argument, and as a result."""
    space = defined(
        "UNSET = object()\ndef f(x=UNSET): return x is UNSET\ndef g(x): return x, x is UNSET\ndef h(): return UNSET"
    )
    unset = space["UNSET"]
    assert worker.call(space["f"]) is True
    assert worker.call(space["f"], unset) is True
    assert worker.call(space["f"], object()) is False
    assert worker.call(space["g"], unset) == (unset, True)
    assert worker.call(space["h"]) is unset
    assert worker.call(space["f"], worker.call(space["h"])) is True


def test_an_object_of_the_worker_comes_back_as_itself(worker: BareWorker) -> None:
    """An `object()` that the worker made is known again there."""
    made = worker.call(defined("def f():\n  import builtins\n  builtins.made = object()\n  return builtins.made")["f"])
    assert type(made) is object
    assert worker.call(defined("def f(x):\n  import builtins\n  return x is builtins.made")["f"], made) is True


def test_a_sentinel_of_a_class_is_itself(worker: BareWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object without state of a class of the program is one object in the worker; one with state is data."""
    space = defined(
        "class Unset: pass\nUNSET = Unset()\nclass Box:\n  def __init__(self): self.n = 1\nBOX = Box()\n"
        "def f(x=None): return x is UNSET\ndef g(x): return x.n, x is BOX\ndef h(): return UNSET"
    )
    main = ModuleType("__main__")
    vars(main).update(space)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert worker.call(space["f"], space["UNSET"]) is True
    assert worker.call(space["f"], space["Unset"]()) is False
    assert worker.call(space["g"], space["BOX"]) == (1, False)
    assert worker.call(space["h"]) is space["UNSET"]


def test_sentinels_of_modules_are_the_modules_own(
    worker: BareWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dataclasses.MISSING` and a library's `object()` are those of the worker's modules."""
    space = defined(
        "import dataclasses, functools, inspect, enum, typing, unittest.mock\nfrom dataclasses import MISSING\n"
        "@dataclasses.dataclass\nclass D:\n  x: int\n  y: list = dataclasses.field(default_factory=list)\n"
        "OBJECT = functools._NOT_FOUND if hasattr(functools, '_NOT_FOUND') else MISSING\n"
        "MOCK = unittest.mock.sentinel.thing\nEMPTY = inspect.Parameter.empty\n"
        "def f():\n  import dataclasses, functools, unittest.mock, inspect\n"
        "  @dataclasses.dataclass\n  class E(D):\n    z: int = 1\n"
        "  return (MISSING is dataclasses.MISSING, D.__dataclass_fields__['x'].default is dataclasses.MISSING, E(1).z,\n"
        "    OBJECT is getattr(functools, '_NOT_FOUND', MISSING), MOCK is unittest.mock.sentinel.thing,\n"
        "    EMPTY is inspect.Parameter.empty)\n"
    )
    assert worker.call(space["f"]) == (True, True, 1, True, True, True)
    (tmp_path / "lacking.py").write_text("NOTHING = object()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    nothing = importlib.import_module("lacking").NOTHING
    assert worker.call(defined("def f(x): return x")["f"], nothing) is nothing  # the worker has no such module


def test_the_objects_with_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that sends many objects does not keep them all."""
    monkeypatch.setattr(kept, "MOST_KEPT", 10)
    objects = [object() for _ in range(30)]
    pickling.loads(pickling.dumps(objects)[0])
    assert len(kept._objects) <= 10
    assert len(kept._tokens) <= 10
    assert pickling.loads(pickling.dumps(objects[0])[0]) is objects[0]


def test_a_context_variable_travels_with_its_default(worker: BareWorker) -> None:
    """A `ContextVar` of the program is one variable in the worker, without a value of the caller's."""
    space = defined(
        "from contextvars import ContextVar\nV = ContextVar('V', default=[7])\nW = ContextVar('W')\n"
        "def f():\n  got = V.get(), W.get('unset')\n  V.set(1)\n  return got, g()\ndef g(): return V.get()"
    )
    space["W"].set("the caller's")
    assert worker.call(space["f"]) == (([7], "unset"), 1)
    assert isinstance(space["W"], contextvars.ContextVar)


# --- functions made by libraries --------------------------------------------------------------------------------


def test_a_dispatcher_travels_with_what_is_registered(worker: BareWorker) -> None:
    """`singledispatch` calls the function registered for the type, and registered functions may call it again."""
    space = defined(
        "import functools, collections.abc\n@functools.singledispatch\ndef show(x):\n  'Shows.'\n  return 'any'\n"
        "@show.register\ndef _(x: int): return 'int'\n"
        "@show.register(list)\ndef _(x): return [show(y) for y in x]\n"
        "@show.register(collections.abc.Mapping)\ndef _(x): return 'mapping'\n"
        "show.note = 5\n"
        "class C:\n  @functools.singledispatchmethod\n  def m(self, x): return 'any'\n"
        "  @m.register\n  def _(self, x: str): return 'str'\n"
        "def f(x): return show(x)\n"
        "def g(): return show.__name__, show.__doc__, show.note, show.dispatch(bool)(True), sorted(map(str, show.registry))\n"
        "def h(): return C().m(1), C().m('')\n"
        "def later(x):\n  @show.register(float)\n  def _(x): return 'float'\n  return show(x)\n"
    )
    assert worker.call(space["f"], [1, "", {}]) == ["int", "any", "mapping"]
    assert worker.call(space["g"]) == ("show", "Shows.", 5, "int", sorted(map(str, space["show"].registry)))
    assert worker.call(space["h"]) == ("any", "str")
    assert worker.call(space["show"], 1) == "int"
    assert worker.call(space["later"], 1.0) == "float"
    assert worker.call(space["f"], 1.0) == "any"


def test_a_recursive_cached_function_has_one_cache(worker: BareWorker) -> None:
    """What its inner calls have computed is known to the next outer one."""
    space = defined(
        "import functools\n@functools.lru_cache(maxsize=None)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "def f(): return fib(20), fib.cache_info()[1:]"
    )
    assert worker.call(space["f"]) == (6765, (21, None, 21))
    assert worker.call(space["f"]) == (6765, (21, None, 21))


def test_what_a_program_registers_with_a_library_travels(worker: BareWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module's dispatcher is the worker's own, with the program's registrations."""
    space = defined(
        "import pkgutil\nfrom pkgutil import iter_importer_modules\nclass Mine: pass\n"
        "@iter_importer_modules.register(Mine)\ndef _(x, prefix=''): return prefix + 'mine'\n"
        "def f():\n  import pkgutil\n  return iter_importer_modules is pkgutil.iter_importer_modules, iter_importer_modules(Mine(), 'my')"
    )
    assert worker.call(space["f"]) == (True, "mymine")


CHANGES = {
    "a function is registered": "@show.register(int)\ndef _(x): return 'int'",
    "what a registered function uses changes": "N = 2",
    "a registered function is replaced": "@show.register(str)\ndef _(x): return 'other'",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_dispatcher_is_seen_by_the_next_call(name: str) -> None:
    """Registered functions are seen as helpers are."""
    space = defined(
        "import functools\nN = 1\n@functools.singledispatch\ndef show(x): return 'any'\n"
        "@show.register\ndef _(x: str): return N\ndef f(): return show(1), show('')"
    )
    pickler = FunctionPickler(space["f"])
    first = pickler.dumps()[0]
    assert pickler.dumps()[0] is first  # while nothing changes
    before = space["f"]()
    exec(compile(CHANGES[name], "<prompt>", "exec"), space)
    assert space["f"]() != before
    assert pickling.loads(pickler.dumps()[0])() == space["f"]()


REFUSED = {
    "a lock": ("import threading\nx = threading.Lock()", "create it inside the function: other processes"),
    "a queue": ("import queue\nx = queue.Queue()", "create it inside the function: other processes"),
    "a socket": ("import socket\nx = socket.socket()\nx.close()", "open it inside the function"),
    "a generator": ("x = (n for n in [])", "pass a list of its items"),
    "an object that can be called": (
        "import itertools, threading\nclass D:\n  def __call__(self): ...\n  def __reduce__(self): raise TypeError('no')\nx = D()",
        "define it in a module of the project",
    ),
    "a mapping": ("class M(dict):\n  def __reduce_ex__(self, v): raise TypeError('no')\nx = M()", "`setup_function`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_has_the_fitting_next_step(name: str) -> None:
    """A hint says what helps with an object of that kind."""
    source, hint = REFUSED[name]
    with pytest.raises(SerializationError, match=r"its global `x` is a") as caught:
        FunctionPickler(defined(source + "\ndef f(): return x")["f"]).dumps()
    assert hint in (caught.value.hint or "")


def test_the_registered_function_that_cannot_travel_is_named() -> None:
    """The chain leads through the dispatcher."""
    space = defined(
        "import functools, threading\nlock = threading.Lock()\n@functools.singledispatch\ndef show(x): return 1\n"
        "@show.register\ndef _(x: int): return lock\ndef f(): return show(1)"
    )
    with pytest.raises(SerializationError, match=r"it uses `show`, which uses `show\[int\]`, whose global `lock` is a"):
        FunctionPickler(space["f"]).dumps()


def test_weak_registries_travel_with_their_objects(worker: BareWorker) -> None:
    """Objects that the program holds are alive inside; a reference that is dead stays so."""
    space = defined(
        "import weakref\nclass Item:\n  def __init__(self, n): self.n = n\n"
        "items = [Item(1), Item(2)]\nBY_NAME = weakref.WeakValueDictionary(a=items[0])\n"
        "NOTES = weakref.WeakKeyDictionary({items[1]: 'note'})\nREF = weakref.ref(items[0])\nDEAD = weakref.ref(Item(3))\n"
        "def f():\n  import gc\n  gc.collect()\n"
        "  return BY_NAME['a'].n, list(NOTES.values()), REF().n, REF() is BY_NAME['a'], DEAD() is None, isinstance(REF, weakref.ref)"
    )
    assert worker.call(space["f"]) == (1, ["note"], 1, True, True, True)


def test_type_parameters_and_new_types_are_one_object_each(worker: BareWorker) -> None:
    """They are compared by identity, in one pickle and in the next."""
    space = defined(
        "import typing\nfrom typing import *\nT = TypeVar('T', bound=int)\nP = ParamSpec('P')\nTs = TypeVarTuple('Ts')\n"
        "UserId = NewType('UserId', int)\nclass Box(Generic[T]): ...\n"
        "def f(*same): return same == (T, P, Ts, UserId), T.__bound__, UserId(3), UserId.__supertype__, P.args.__origin__ is P,"
        " Box.__parameters__[0] is T, UserId.__module__"
    )
    same = [space[name] for name in ("T", "P", "Ts", "UserId")]
    for _ in range(2):
        assert worker.call(space["f"], *same) == (True, int, 3, int, True, True, "__main__")
    assert worker.call(defined("def f(x): return x")["f"], same) == same


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is of Python 3.12")
def test_the_type_parameters_of_a_definition_travel(worker: BareWorker) -> None:
    """Functions, classes and aliases keep theirs (PEP 695)."""
    space = defined(
        "type Alias = list[int]\ntype Of[T] = dict[str, T]\nclass Box[T, *Ts, **P]:\n  def get[U: (int, str)](self, u: U) -> T: return u\n"
        "def first[T: Box](x: T) -> T: return x\n"
        "def f(): return (Alias.__value__, Of[int].__args__, [str(t) for t in Box.__type_params__],"
        " first.__type_params__[0].__bound__ is Box, Box.get.__type_params__[0].__constraints__, Box().get(1))"
    )
    assert worker.call(space["f"]) == (list[int], (int,), ["T", "Ts", "P"], True, (int, str), 1)


def test_an_alias_is_of_its_own_module() -> None:
    """It takes the name of the module whose frame makes it, and pickles by its name there."""

    def make(name: str, value: Any) -> Any:
        return name, value, sys._getframe(1).f_globals["__name__"]

    assert type_parameters.rebuild_type_parameter(make, "own", "Alias", (int,), {}) == ("Alias", int, "own")


CHECKER = """
import functools, sys, typing
def validate_call(function=None, *, config=None, validate_return=False):
    if function is None: return functools.partial(validate_call, config=config, validate_return=validate_return)
    return _Checker(function, config, validate_return).wrapper()
class _Checker:
    def __init__(self, function, config, validate_return):
        self.function, self._config, self._validate_return = function, config, validate_return
        self.hints = typing.get_type_hints(function, function.__globals__)
    def __call__(self, *arguments): return self.function(*arguments)
    def wrapper(self):
        checker = self
        @functools.wraps(self.function)
        def wrapped(*arguments): return checker(*arguments)
        wrapped.raw_function = self.function
        return wrapped
sys.modules[__name__ + ".calls"] = sys.modules[__name__]
__name__ += ".calls"
"""


def test_a_checked_function_finds_the_classes_in_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validator is made again as soon as its function is there, from annotations that are text."""
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "pydantic.py").write_text(CHECKER)
    monkeypatch.syspath_prepend(packages)
    try:
        space = defined(
            "from pydantic import validate_call\nclass N: ...\n"
            "@validate_call\ndef checked(n: int, m: 'N | None' = None) -> 'list[N]': return n\n"
            "def f(): return checked(4)"
        )
        with BareWorker(tmp_path / "worker", packages) as worker:
            assert worker.call(space["f"]) == 4
    finally:
        for name in ("pydantic", "pydantic.calls"):  # other tests of this process have the real one, or none
            sys.modules.pop(name, None)


# --- classes inside classes -------------------------------------------------------------------------------------


NESTED = """
import dataclasses, enum, pickle
from typing import NamedTuple
class Order:
    @dataclasses.dataclass
    class Item:
        n: int
    @dataclasses.dataclass(slots=True)
    class Slotted:
        n: int
    class Pair(NamedTuple):
        n: int
    class Kind(enum.Enum):
        ONE = 1
    class Failure(Exception): ...
def make():
    class Inner: ...
    return Inner
Inner = make()
def names(): return [one.__qualname__ for one in (Order.Item, Order.Slotted, Order.Pair, Order.Kind, Order.Failure, Inner)]
def shown(): return repr(Order.Item(3)), repr(Order.Slotted(3))
def made(): return Order.Item(3), Order.Slotted(3), Order.Pair(3), Order.Kind.ONE
"""


def test_a_nested_class_keeps_its_qualified_name(worker: BareWorker) -> None:
    """It pickles by this name, and its objects show it."""
    space = defined(NESTED)
    assert worker.call(space["names"]) == space["names"]()
    assert worker.call(space["shown"]) == space["shown"]()
    assert worker.call(space["made"]) == space["made"]()


# --- functions of Atoll's in the caller's own process pools -----------------------------------------------------


@isolated
def double(x: int) -> int:
    return 2 * x


@cached
def kept_value(x: int) -> int:
    return x


class Owner:
    @isolated
    def method(self) -> int:
        return 1


renamed = double.on(timeout=5)
hidden = [cached(lambda: 1)]


@pytest.mark.parametrize("function", [double, kept_value, Owner.method, renamed])
def test_a_function_pickles_as_its_name(function: Any) -> None:
    """`pickle` gives the very object back; copies are the object."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(function, protocol)) is function
    assert copy.copy(function) is function
    assert copy.deepcopy([function])[0] is function


def test_a_function_without_a_name_says_so() -> None:
    """The error has the reason, and the next pickle works."""

    @isolated
    def local() -> None: ...

    with pytest.raises(SerializationError, match=r"isolated function .* `.*local` is defined inside a function"):
        pickle.dumps(local)
    with pytest.raises(SerializationError, match=r"`.*double` is another object"):
        pickle.dumps(double.on(timeout=7))
    with pytest.raises(SerializationError, match="a lambda has no name"):
        pickle.dumps(hidden[0])
    assert copy.copy(local) is local
    assert pickle.loads(pickle.dumps(double)) is double


def test_a_cloudpickle_gets_a_function_by_value() -> None:
    """Programs that send functions to other machines find no module of the caller's there."""
    import cloudpickle

    found = cloudpickle.loads(cloudpickle.dumps(double))
    assert found is not double
    assert found.local(4) == 8
    assert found.options == double.options


def test_what_wraps_a_function_has_nothing_of_its_inside(worker: BareWorker) -> None:
    """`functools.wraps` copies only what a plain function has."""

    @functools.wraps(double)
    def wrapper(x: int) -> int:
        return double.local(x)

    assert not [name for name in vars(wrapper) if not name.startswith("__")]
    assert wrapper.__name__ == "double"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_pool_of_the_caller_takes_a_function(method: str, tmp_path: Path) -> None:
    """Each way of starting processes finds the function of the main program."""
    program = f"""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from atoll import cached, isolated

@isolated
def f(x): return x * 2
@cached
def c(x): return x + 1
def local(function, x): return function.local(x) if hasattr(function, "local") else function(x)

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context({method!r})) as pool:
        print([pool.submit(local, g, 3).result(60) for g in (f, c)])
"""
    assert run_script(tmp_path, program) == "[6, 4]\n"
