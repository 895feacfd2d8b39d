"""Names of the program that its functions use as text, or that others look for in its `__main__`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from tests.conftest import Home

START = """
from __future__ import annotations

import dataclasses, functools, importlib, inspect, json, math, pickle, sys, threading, typing
from atoll import isolated, local
from typing import Optional

found = {}

def called(function, *args):
    try:
        return function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


def results(home: Home, directory: Path, program: str) -> dict[str, Any]:
    """Run a program; return what it has put into `found`."""
    script = directory / "script.py"
    script.write_text(START + textwrap.dedent(program) + "\nprint(json.dumps(found))\n")
    last = home.python(str(script)).stdout.splitlines()[-1]
    answer: dict[str, Any] = json.loads(last)
    return answer


def test_names_in_text_are_the_programs(shared_home: Home, tmp_path: Path) -> None:
    """Annotations, `eval`, `globals`, expressions and `__subclasses__` find names that no instruction names."""
    found = results(
        shared_home,
        tmp_path,
        '''
        class Path: pass

        @dataclasses.dataclass
        class Config:
            path: Optional[Path] = None
            next: Optional["Config"] = None

        def handler(x: "Path") -> "list[Config]": return "handled"
        def twice(x): return handler(x) * 2
        class Base: pass
        class First(Base): pass
        class Second(First): pass
        x, unpicklable, large = 1, threading.Lock(), bytes(1 << 20)

        @isolated
        def hints(): return sorted(typing.get_type_hints(Config)), str(typing.get_type_hints(handler)["return"])
        @isolated
        def evaluated(text): return eval(text)
        @isolated
        def by_globals(name): return globals()["hand" + name](1)
        @isolated
        def expression():
            """Use twice(x)."""
            frame = inspect.currentframe()
            return [name in frame.f_globals for name in ("x", "math", "twice", "large", "unpicklable")], "math.pi*(x + large)"
        @isolated
        def documented():
            """Use twice(x)."""
            return "twice" in inspect.currentframe().f_globals
        @isolated
        def subclasses(): return [one.__name__ for one in Base.__subclasses__()]
        @isolated
        def every(): return sorted(name for name in ("x", "large", "unpicklable", "twice") if name in globals())
        @isolated
        def argument(value): return sorted(typing.get_type_hints(type(value)))

        @isolated
        def nested():
            class Inner:
                config: Config
            def inner(x: Config) -> Path: ...
            return [sorted(typing.get_type_hints(one, localns={})) for one in (Inner, inner)]

        found["hints"] = called(hints)
        found["eval"] = called(evaluated, "twice(x) + str(x) + str(math.floor(2.5))")
        x = 2
        found["eval again"] = called(evaluated, "x")
        new = 5
        found["eval of a new name"] = called(evaluated, "new + x")
        found["globals"] = called(by_globals, "ler")
        found["expression"] = called(expression)[0]
        found["documented"] = called(documented)
        found["subclasses"] = [called(subclasses), called(subclasses)]
        found["every"] = called(every)
        found["argument"] = called(argument, Config())
        found["nested"] = called(nested)
        ''',
    )
    assert found == {
        "hints": [["next", "path"], "list[__main__.Config]"],
        "eval": "handledhandled12",
        "eval again": 2,
        "eval of a new name": 7,
        "globals": "handled",
        "expression": [True, True, False, False, False],
        "documented": False,
        "subclasses": [["First"], ["First"]],
        "every": ["twice", "x"],
        "argument": ["next", "path"],
        "nested": [["config"], ["return", "x"]],
    }


def test_main_has_the_programs_names(shared_home: Home, tmp_path: Path) -> None:
    """`__main__` inside is the program's: what nothing has named is asked for when it is used, as it is then."""
    found = results(
        shared_home,
        tmp_path,
        '''
        """Says what it is."""
        secret = "of the program"
        counter, lock, large = 0, threading.Lock(), bytes(1 << 20)
        class Model:
            def predict(self): return counter
        def bump():
            global counter
            counter += 1
            return counter
        def main(): return importlib.import_module("__main__")

        @isolated(keep_alive=0)
        def save():
            with open("/data/names.pkl", "wb") as file: pickle.dump(Model(), file)
        @isolated(keep_alive=0)
        def load():
            with open("/data/names.pkl", "rb") as file: return pickle.load(file).predict()
        @isolated
        def get(*names): return [called(lambda: str(getattr(main(), name))[:70]) for name in names]
        @isolated
        def identity():
            program = main()
            same = program.bump is bump, type(program.Model()) is program.Model, vars(program) is globals()
            return [*same, bump(), getattr(program, "bump")(), program.counter, counter, program.Model().predict()]
        @isolated
        def items():
            for number in range(3): yield getattr(main(), "coun" + "ter")
        @isolated
        def from_threads():
            sizes = []
            threads = [threading.Thread(target=lambda: sizes.append(len(main().large))) for _ in range(4)]
            for one in threads: one.start()
            for one in threads: one.join()
            return sizes
        @isolated
        def described():
            program = main()
            return program.__name__, program.__file__ == __file__, program.__spec__, program.__package__, "bump" in dir(program)
        @isolated
        def inner(): return getattr(main(), "coun" + "ter")
        @isolated
        def outer(): return inner()
        @isolated
        def number(x): return getattr(main(), "coun" + "ter") + x
        @isolated(results="data")
        def distrusted(): return called(lambda: getattr(main(), "coun" + "ter"))

        save()
        found["pickle of a class in a fresh worker"] = called(load)
        found["names"] = called(get, "counter", "lock", "none")
        counter = 1
        found["names again"] = called(get, "counter")
        found["identity"] = [called(identity), called(identity)]
        stream = items()
        found["items"] = [next(stream)]
        counter = 3
        found["items"] += [*stream][-1:]
        stream = items()
        next(stream)
        stream.close()
        found["threads"] = called(from_threads)
        found["described"] = called(described)
        found["nested"] = called(outer)
        found["map"] = sum(number.map(range(100)))
        found["distrusted"] = called(distrusted)
        @isolated(results="data")
        def evaluated(text): return called(eval, text), called(eval, "counter + 1")
        class Net:
            def eval(self): return "evaluated"
        @isolated
        def by_method(): return Net().eval(), "secret" in sys._getframe().f_globals
        found["an object's `eval`"] = called(by_method)
        found["distrusted eval"] = called(evaluated, "secret"), called(evaluated, "bump()")
        ''',
    )
    has_none = "AttributeError: module '__main__' has no attribute"
    refused = 'a function with `results="data"` cannot ask its caller for names'
    assert found == {
        "pickle of a class in a fresh worker": 0,
        "names": [
            "0",
            f"{has_none} 'lock' here: a `_thread.lock` cannot be sent: cannot pickle '_thread.lock' object",
            f"{has_none} 'none'",
        ],
        "names again": ["1"],
        "identity": [[True, True, True, 2, 3, 3, 3, 3]] * 2,
        "items": [1, 1],
        "threads": [1 << 20] * 4,
        "described": ["__main__", True, None, None, True],
        "nested": 3,
        "map": sum(range(100)) + 300,
        "distrusted": f"{has_none} 'counter' here: {refused}",
        "distrusted eval": [
            [f"NameError: name '{name}' is not defined" for name in names]
            for names in (("secret", "counter"), ("bump", "counter"))
        ],
        "an object's `eval`": ["evaluated", False],
    }


MODULE = """
from __future__ import annotations
import dataclasses, importlib, multiprocessing, pickle, sys, threading, typing
from atoll import isolated

LIMIT, LOCK = 5, threading.Lock()

@dataclasses.dataclass
class Config:
    size: int = 0
    next: Config | None = None

def squared(config): return Config(config.size ** 2)
def handler(): return "handled"

def look():
    import pkg.job
    from pkg import other
    limits = other.limits()
    return [
        sorted(typing.get_type_hints(Config)),
        getattr(sys.modules[__name__], "hand" + "ler")(),
        type(pickle.loads(pickle.dumps(Config()))) is Config,
        pkg.job.Config is Config is other.Config,
        limits,
        type(pkg.job.LOCK).__name__,
        hasattr(pkg.job, "none"),
        pkg.NAME,
    ]

trusted = isolated(look)
distrusted = isolated(results="data")(look)

@isolated
def pooled(method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        return [one.size for one in pool.map(squared, [Config(3)])]

@isolated
def main_file(): return importlib.import_module("__main__").__file__
"""
OTHER = """
import pkg.job
from pkg.job import Config
def limits(): return pkg.job.LIMIT
"""


def test_the_module_of_a_function_has_its_names(shared_home: Home, tmp_path: Path) -> None:
    """A project's module whose functions travel by value is one module inside, for the others that import it too."""
    package = tmp_path / "pkg"
    package.mkdir()
    for name, text in (("__init__", "NAME = 'pkg'"), ("job", MODULE), ("other", OTHER)):
        (package / f"{name}.py").write_text(text)
    found = results(
        shared_home,
        tmp_path,
        """
        from pkg import job

        found["trusted"] = called(job.trusted)
        job.LIMIT = 6
        found["changed"] = called(job.trusted)[4]
        found["distrusted"] = called(job.distrusted)
        found["pools"] = [called(job.pooled, method) for method in ("fork", "spawn")]
        found["main"] = job.main_file() == __file__
        """,
    )
    seen = [["next", "size"], "handled", True, True, 5, "lock", False, "pkg"]
    assert found == {
        "trusted": seen,
        "changed": 6,
        "distrusted": seen,
        "pools": [[9], [9]],
        "main": True,
    }
