"""Calls with the client of 2023."""

import os
import signal
import sys
import traceback

from fal_serverless.api import FalServerlessError

from fal_serverless import FalServerlessHost, cached, isolated, local


def ok(name: str, holds: object) -> None:
    # dill replaces `sys.stdout` while it pickles, in several threads at once: then not all of them put it back
    print(f"{'ok' if holds else 'WRONG'} {name}", file=sys.__stdout__, flush=True)


@isolated()
def add(a, b):
    print("adding", a, b)
    print("to stderr", file=sys.stderr)
    return a + b


@isolated()
def total(a, b):  # without names of the module: this client's dill loses some where threads pickle at the same time
    return a + b


@isolated()
def fails(kind):
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise kind("outer", 7) from error


class Own(Exception):
    pass


@isolated(requirements=["pyjokes==0.6.0"])
def version():
    import pyjokes

    return pyjokes.__version__


def prepare():
    return {"prepared": os.getpid()}


@isolated(setup_function=prepare, keep_alive=60)
def prepared(first, second):
    return first["prepared"] == os.getpid(), second


@cached
def slow(number):
    with open("/data/count", "a") as file:
        file.write("x")
    return number * 2


@isolated(keep_alive=60)
def kept():
    return slow(21), os.path.getsize("/data/count"), os.getpid()


@isolated(machine_type="S", keep_alive=0)
def place():
    return os.getpid(), os.getcwd(), os.environ["IS_ISOLATE_AGENT"]


@isolated()
def dies():
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@isolated()
async def later():
    return "awaited"


def main() -> None:
    ok("result", add(1, 2) == 3)
    ok("none", isolated()(lambda: None)() is None)
    ok("large result", len(isolated()(lambda: b"x" * (32 << 20))()) == 32 << 20)
    for kind in (ValueError, Own):
        try:
            fails(kind)
        except kind as error:
            text = traceback.format_exc()
            cause = isinstance(error.__cause__, KeyError)
            ok(f"exception {kind.__name__}", error.args == ("outer", 7) and cause and "raise kind" in text)
    ok("requirements", version() == "0.6.0")
    ok("setup_function", prepared("x") == (True, "x") and prepared("y") == (True, "y"))
    first, second = kept(), kept()
    ok("cached", first == second)
    pid, directory, agent = place()
    ok("working directory", directory == "/data" and agent == "1" and pid > 0)
    ok("keep_alive=0", place()[0] > 0)
    ok("on machine_type", add.on(machine_type="M")(3, 4) == 7)
    futures = [total.submit(number, 1) for number in range(4)]
    ok("submit", [one.result() for one in futures] == [1, 2, 3, 4])
    ok("awaited", later() == "awaited")
    try:
        dies()
    except FalServerlessError as error:
        ok("death by signal", "out of memory" in str(error) or "crashed" in str(error))
    try:
        add.on(machine_type="nothing")(1, 1)
    except FalServerlessError as error:
        ok("unknown machine type", "nothing" in str(error))
    try:
        add.on(FalServerlessHost(f"{os.environ['FAL_HOST']}"), requirements=["/etc/passwd"])(1, 1)
    except FalServerlessError as error:
        ok("no file of the server", "names a file" in str(error))
    ok("local", add.on(local) is not None)


main()
