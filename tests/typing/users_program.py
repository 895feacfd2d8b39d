"""A user's program as the guide has them, with types: both checkers in strict mode find nothing to say about it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll import CallHandle, IsolatedFunction, Retries, Volume, cached, download, errors, isolated, sync_dir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class Score:
    name: str
    value: float


@isolated(requirements=["numpy>=2"], machine_type="M", keep_alive=60)
def eigenvalues(size: int, seed: int = 0) -> NDArray[np.complex128]:
    import numpy as np

    found = np.random.default_rng(seed).random((size, size))
    return np.linalg.eigvals(found).astype(np.complex128)


@cached
def load(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@isolated(requirements="requirements.txt", timeout=60, retries=Retries(2, on=(ConnectionError,)), network="outbound")
def score(name: str) -> Score:
    return Score(name, len(load(f"/data/models/{name}")))


@isolated(memory="2GB", cpu=0.5)
def numbers(most: int) -> Iterator[int]:
    yield from range(most)


@isolated
async def fetch(address: str) -> str:
    await asyncio.sleep(0)
    return address


@isolated(setup_function=lambda: [1, 2, 3])
def pick(table: list[int], index: int) -> int:
    return table[index]


class Model:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    @isolated(keep_alive=60)
    def scaled(self, value: float) -> float:
        return self.factor * value


def best(function: IsolatedFunction[[str], Score], names: list[str]) -> Score:
    return max(function.map(names), key=lambda one: one.value)


def failures(names: list[str]) -> list[Exception]:
    return [one for one in score.map(names, return_exceptions=True) if isinstance(one, Exception)]


def in_order_of_arrival(sizes: list[int]) -> dict[int, complex]:
    futures: dict[Future[NDArray[np.complex128]], int] = {eigenvalues.submit(size): size for size in sizes}
    return {futures[future]: complex(future.result()[0]) for future in as_completed(futures)}


async def together() -> list[str]:
    texts = list(await asyncio.gather(fetch.aio("a"), fetch.aio("b")))
    return texts + [str(number) async for number in numbers.aio(3)]


async def items() -> AsyncIterator[int]:
    async with contextlib.aclosing(numbers.aio(3)) as stream:
        async for number in stream:
            yield number


def main() -> None:
    place = sync_dir("models", "/data/models", exclude=["*.tmp"])
    weights = download("https://example.org/weights", path="models/weights")
    print(place, weights, eigenvalues(3).real.sum(), sum(numbers(3)), fetch("a").upper(), pick(1) + 1)
    handle: CallHandle[Score] = score.spawn("small")
    print(handle.id, handle.result().value, best(score.on(machine_type="L"), ["small", "large"]), failures(["none"]))
    print(Model(2.0).scaled(3.0), [x + 1 for x in Model(2.0).scaled.map([1.0, 2.0])])
    with Volume() as volume, volume.open("results.txt", "w") as file:
        file.write(str(asyncio.run(together())))
    try:
        score("missing")
    except errors.CallTimeout as error:
        print(errors.call_id(error), error.hint)


if __name__ == "__main__":
    main()
