"""Calls with the client of today."""

import os
import sys

import fal


def ok(name: str, holds: object) -> None:
    print(f"{'ok' if holds else 'WRONG'} {name}", flush=True)


@fal.function(requirements=["pyjokes==0.6.0"], keep_alive=60)
def add(a, b):
    import pyjokes

    print("adding", a, b, pyjokes.__version__)
    return a + b


@fal.function()
def fails():
    raise ValueError("outer", 7)


def main() -> None:
    ok("result", add(1, 2) == 3 and add(3, 4) == 7)
    try:
        fails()
    except ValueError as error:
        ok("exception", error.args == ("outer", 7))
    ok("local", os.getpid() > 0 and sys.version_info >= (3, 10))


main()
