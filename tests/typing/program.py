"""A user's program that nothing runs: `tests/unit/test_types.py` has mypy and pyright read it, each in strict mode.

A line's last comment is the answer of both checkers: `#: TYPE` of a `reveal_type`, or `#: ! CODES` of errors, those of mypy
and of pyright. Where the two write a type differently, mypy's comes first: `#: TYPE / TYPE`. All other lines are right.
"""

import functools
import io
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, reveal_type

import atoll
import fal_serverless
from atoll import CallFuture, IsolatedFunction, Retries, Volume, cached, download, errors, isolated, local, sync_dir

T = TypeVar("T")


@isolated(requirements=["numpy"], machine_type="S")
def f(x: int, y: str = "a") -> float:
    return 1.0


@isolated
def g(x: int, /) -> str:
    return "a"


@isolated()
def none() -> None: ...


@isolated
def only_keyword(*, x: int) -> int:
    return x


@isolated
def many(*numbers: int) -> int:
    return 1


@isolated
def unknown(x: int) -> Any: ...


@isolated
def same(x: T) -> T:
    return x


# --- a call, and its result
reveal_type(f(1))  #: float
reveal_type(f(x=1, y="b"))  #: float
reveal_type(f.local(1))  #: float
reveal_type(g(1))  #: str
reveal_type(none)  #: IsolatedFunction[[], None] / IsolatedFunction[(), None]
reveal_type(unknown(1))  #: Any
reveal_type(many(1, 2, 3))  #: int
reveal_type(f)  #: IsolatedFunction[[x: int, y: str =], float] / IsolatedFunction[(x: int, y: str = "a"), float]
f("x")  #: ! arg-type reportArgumentType
f()  #: ! call-arg reportCallIssue
f(1, z=2)  #: ! call-arg reportCallIssue
f.local("x")  #: ! arg-type reportArgumentType
g(x=1)  #: ! call-arg reportCallIssue
text: str = f(1)  #: ! assignment reportAssignmentType

# --- futures
reveal_type(f.submit(1))  #: CallFuture[float]
reveal_type(f.submit(1).result())  #: float
reveal_type(f.submit(1).call_id)  #: str
reveal_type(f.cancel(f.submit(1)))  #: bool
future: Future[float] = f.submit(1)
futures: dict[Future[float], int] = {f.submit(number): number for number in range(3)}
exact: CallFuture[float] = f.submit(1)
f.submit("x")  #: ! arg-type reportArgumentType
f.submit()  #: ! call-arg reportCallIssue

# --- calls for many items
reveal_type(f.map([1, 2]))  #: Iterator[float]
reveal_type(f.map(range(3), ["a", "b", "c"]))  #: Iterator[float]
reveal_type(f.map([1], return_exceptions=True))  #: Iterator[float | Exception]
reveal_type(f.map([1], ["y"], return_exceptions=True))  #: Iterator[float | Exception]
reveal_type(f.map([1], return_exceptions=False, progress="numbers", ordered=False))  #: Iterator[float]
reveal_type(many.map([1], [2], [3], [4]))  #: Iterator[int]
reveal_type(f.starmap([(1, "a")]))  #: Iterator[float]
reveal_type(f.starmap(zip([1], ["a"], strict=True)))  #: Iterator[float]
reveal_type(f.starmap([(1,), (2,)], return_exceptions=True))  #: Iterator[float | Exception]
reveal_type(f.starmap([[1, "a"]]))  #: Iterator[float]
reveal_type(many.starmap([(1, 2, 3, 4)]))  #: Iterator[int]
f.map(["x"])  #: ! list-item reportArgumentType
f.map([1], [2])  #: ! list-item reportArgumentType
f.map([1], ["y"], ["z"])  #: ! call-overload reportCallIssue
f.map([1], progres=True)  #: ! call-overload reportCallIssue
f.starmap([("x",)])  #: ! list-item reportCallIssue,reportArgumentType
f.starmap([(1, 2)])  #: ! list-item reportCallIssue,reportArgumentType
none.map([1])  #: ! misc,arg-type reportAttributeAccessIssue,reportUnknownMemberType
only_keyword.map([1])  #: ! misc,arg-type reportAttributeAccessIssue,reportUnknownMemberType

# --- calls that outlive the program
reveal_type(f.spawn(1))  #: CallHandle[float]
reveal_type(f.spawn(1).result())  #: float
f.spawn("x")  #: ! arg-type reportArgumentType


# --- generators and async functions
@isolated()
def gen(n: int) -> Iterator[int]:
    yield n


@isolated
def gen_with_result(n: int) -> Generator[int, None, str]:
    yield n
    return "end"


@isolated()
async def co(n: int) -> bytes:
    return b""


@isolated
async def agen(n: int) -> AsyncIterator[int]:
    yield n


reveal_type(gen(3))  #: Iterator[int]
reveal_type(gen.submit(3))  #: CallFuture[list[int]]
reveal_type(gen.spawn(3))  #: CallHandle[list[int]]
reveal_type(gen.map([3]))  #: Iterator[list[int]]
reveal_type(gen.local(3))  #: Iterator[int]
reveal_type(gen.on(keep_alive=3)(3))  #: Iterator[int]
reveal_type(gen_with_result(3))  #: Generator[int, None, str]
reveal_type(gen_with_result.submit(3))  #: CallFuture[list[int]]
reveal_type(co(3))  #: bytes
reveal_type(co.submit(3))  #: CallFuture[bytes]
reveal_type(co.map([3]))  #: Iterator[bytes]
reveal_type(co.on(keep_alive=3)(3))  #: bytes
on_loop: Coroutine[Any, Any, bytes] = co.local(3)
reveal_type(agen(3))  #: Generator[int, None, None]
reveal_type(agen.submit(3))  #: CallFuture[list[int]]
reveal_type(agen.local(3))  #: AsyncGenerator[int, Any]
gen("x")  #: ! arg-type reportArgumentType
co("x")  #: ! arg-type reportArgumentType
agen("x")  #: ! arg-type reportArgumentType
gen.map(["x"])  #: ! list-item reportArgumentType


async def main() -> None:
    reveal_type(await f.aio(1))  #: float
    reveal_type(await co.aio(3))  #: bytes
    async for item in gen.aio(3):
        reveal_type(item)  #: int
    async for item in agen.aio(3):
        reveal_type(item)  #: int
    await f.aio("x")  #: ! arg-type reportArgumentType
    reveal_type(await gen.aio(3))  #: list[int]
    await gen.aio(3).aclose()


# --- a setup function's result is the first argument
def load() -> dict[str, int]:
    return {"a": 1}


@isolated(setup_function=load)
def prepared(state: dict[str, int], x: int) -> int:
    return x


@isolated(setup_function=load, keep_alive=60)
def prepared_items(state: dict[str, int], x: int) -> Iterator[int]:
    yield x


@isolated(setup_function=load)
async def prepared_async(state: dict[str, int], x: int) -> int:
    return x


async def load_later() -> dict[str, int]:
    return {"a": 1}


@isolated(setup_function=load_later)
def prepared_later(state: dict[str, int], x: int) -> int:
    return x


with_text = isolated(setup_function=lambda: "text")


@with_text  #: ! arg-type reportArgumentType,reportCallIssue,reportUntypedFunctionDecorator
def wrongly_prepared(state: dict[str, int], x: int) -> int:
    return x


reveal_type(prepared(3))  #: int
reveal_type(prepared.map([3]))  #: Iterator[int]
reveal_type(prepared.local({}, 3))  #: int
reveal_type(prepared.on(keep_alive=3)(3))  #: int
reveal_type(prepared.on(setup_function=load)(3))  #: int
reveal_type(prepared_items(3))  #: Iterator[int]
reveal_type(prepared_items.submit(3).result())  #: list[int]
reveal_type(prepared_async(3))  #: int
reveal_type(prepared_later(3))  #: int
reveal_type(prepared_later.on(setup_function=load_later)(3))  #: int
reveal_type(many.on(setup_function=lambda: 1)(2))  #: int
prepared({}, 3)  #: ! call-arg,arg-type reportCallIssue
prepared("x")  #: ! arg-type reportArgumentType
prepared.local(3)  #: ! call-arg,arg-type reportCallIssue


# --- methods
class Scaler:
    factor = 2

    @isolated
    def scale(self, x: int) -> int:
        return x

    @isolated()
    async def later(self, x: int) -> int:
        return x

    @isolated(keep_alive=1)
    def each(self, x: int) -> Iterator[int]:
        yield x

    @staticmethod
    @isolated
    def half(x: int) -> float:
        return x / 2

    @cached
    def table(self, x: int) -> str:
        return ""


class Larger(Scaler):
    """A class that inherits the methods."""


reveal_type(Scaler().scale(1))  #: int
reveal_type(Larger().scale(1))  #: int
reveal_type(Scaler().scale.submit(1))  #: CallFuture[int]
reveal_type(Scaler().scale.map([1]))  #: Iterator[int]
reveal_type(Scaler.scale(Scaler(), 1))  #: int
reveal_type(Scaler().later(1))  #: int
reveal_type(Scaler().each(1))  #: Iterator[int]
reveal_type(Scaler().each.submit(1).result())  #: list[int]
reveal_type(Scaler.half(1))  #: float
reveal_type(Scaler().half(1))  #: float
reveal_type(Scaler().table(1))  #: str
Scaler().scale("x")  #: ! arg-type reportArgumentType
Scaler().table("x")  #: ! arg-type reportArgumentType


# --- other callables
def one_text(text: str) -> int:
    return len(text)


reveal_type(isolated(len)("ab"))  #: int
reveal_type(isolated(functools.partial(f.local, y="b"))(1))  #: float
reveal_type(same(1))  #: Any / int
reveal_type(isolated(requirements=["numpy"])(len)([1]))  #: int
reveal_type(isolated(one_text, keep_alive=3)("a"))  #: int
reveal_type(isolated(co.local, keep_alive=3, machine_type="S")(3))  #: bytes
isolated(one_text, keep_alive=3)(1)  #: ! arg-type reportArgumentType
sizes: IsolatedFunction[[str], int] = isolated(lambda text: len(text))
isolated(3)  #: ! call-overload reportCallIssue,reportArgumentType


def run(function: IsolatedFunction[[int], T]) -> T:
    return function(1)


def each_of(functions: Iterable[IsolatedFunction[..., Any]]) -> None: ...


reveal_type(run(many))  #: int
each_of([f, gen, co, agen, prepared])


# --- options
def one_argument(one: int) -> int:
    return one


isolated("conda", packages=["numpy"], channels=["conda-forge"], pip="requirements.txt")
isolated("conda", env_yml=Path("environment.yml"))
isolated("virtualenv", requirements="uv.lock", python_version="3.12", env={"A": "b"}, mounts={"/a": Path("b")})
isolated(timeout=5, retries=3, grace=1, umask=0o077, terminal=False, preload=["numpy"], results="data", host=local)
isolated(retries=Retries(3, on=ConnectionError), network="none", local_modules=[Path("a"), "b"], max_concurrency=2)
isolated(retries=(3, ConnectionError, OSError), cpu=0.5, memory="12GB", gpu="A100:2", disk="50GB")
reveal_type(f.on(keep_alive=3, host=local)(1))  #: float
reveal_type(f.on(local, machine_type="M").map([1]))  #: Iterator[float]
isolated(requirments=["a"])  #: ! call-overload reportCallIssue
isolated(machine_type="huge")  #: ! call-overload reportArgumentType
isolated(network="abc")  #: ! call-overload reportArgumentType
isolated(results="json")  #: ! call-overload reportArgumentType
isolated(timeout="5")  #: ! call-overload reportArgumentType
isolated(requirements=[1])  #: ! list-item reportArgumentType
isolated("venv")  #: ! call-overload reportCallIssue,reportArgumentType
isolated("conda", requirements=["a"])  #: ! call-overload reportCallIssue,reportArgumentType
isolated(packages=["a"])  #: ! call-overload reportCallIssue
isolated(setup_function=one_argument)  #: ! arg-type reportArgumentType,reportCallIssue
f.on(keepalive=3)  #: ! call-overload reportCallIssue
f.on(machine_type="huge")  #: ! call-overload reportArgumentType


# --- cached functions, data
@cached
def model(name: str) -> list[int]:
    return [1]


reveal_type(model("a"))  #: list[int]
model(1)  #: ! arg-type reportArgumentType
text_file: io.TextIOBase = Volume().open("a")
bytes_file: io.BufferedIOBase = Volume().open("a", "rb")
reveal_type(Volume().open("a").read())  #: str
reveal_type(Volume().open("a", "rb").read())  #: bytes
reveal_type(Volume().open("a", "w").write("a"))  #: int
reveal_type(Volume().listdir("a"))  #: list[str]
reveal_type(sync_dir("a", "b", exclude=["*.pyc"]))  #: str
reveal_type(download("https://example.org/a", sha256="0" * 64))  #: str
Volume().open("a", "rb").write("a")  #: ! arg-type reportArgumentType
sync_dir("a")  #: ! call-arg reportCallIssue
sync_dir("a", "b", exlude=["*.pyc"])  #: ! call-arg reportCallIssue
Retries(count="3")  #: ! arg-type reportArgumentType
reveal_type(errors.call_id(ValueError()))  #: str
reveal_type(atoll.__version__)  #: str
reveal_type(atoll.errors.call_id(ValueError()))  #: str
reveal_type(fal_serverless.isolated(keep_alive=1)(len)([1]))  #: int
fal_serverless.isolated(keepalive=1)  #: ! call-overload reportCallIssue
atoll.isolatd  #: ! attr-defined reportAttributeAccessIssue,reportUnknownMemberType
plain: Callable[[int], float] = f
