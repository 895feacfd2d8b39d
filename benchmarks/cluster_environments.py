"""Environments of many machines: each builds its own from cached wheels, or all use one on the shared disk.

Measured on this machine, with JuiceFS (SQLite and files) twice mounted, as if by two machines: the second one builds
from wheels that it has, or finds what the first one has put on the shared disk. A program that imports the packages
tells the rest. Page caches are dropped before each round where root can.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from table import Samples, say
from uv import find_uv_bin

PACKAGES = ("numpy", "pandas")
IMPORTS = "import numpy, pandas"
UNCACHED = ("--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0", "--open-cache", "0")


def run(*command: str | Path) -> None:
    """Run a program to its end."""
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def drop_caches() -> None:
    """Have the next reads come from the disk."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def build(target: Path, cache: Path, *, mode: str) -> None:
    """Make a virtual environment from wheels that uv has."""
    uv = find_uv_bin()
    run(uv, "venv", "--quiet", "--python", sys.executable, target)
    offline: list[str | Path] = ["--offline", "--link-mode", mode, "--cache-dir", cache]
    offline += ["--python", target / "bin" / "python"]
    run(uv, "pip", "install", "--quiet", "--compile-bytecode", *offline, *PACKAGES)


@contextlib.contextmanager
def mounted(metadata: str, point: Path) -> Iterator[None]:
    """Mount JuiceFS, with an empty cache of contents."""
    point.mkdir(exist_ok=True)
    cache = tempfile.mkdtemp(prefix="atoll-cache-", dir="/tmp")
    line = ["juicefs", "mount", metadata, str(point), *UNCACHED, "--cache-dir", cache, "--no-usage-report"]
    program = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not os.path.ismount(point):
            time.sleep(0.02)
        yield
    finally:
        run("umount", point)
        program.wait()
        shutil.rmtree(cache)


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    names = (
        "own: build",
        "own: first import",
        "own: import",
        "shared: build",
        "shared: first import",
        "shared: import",
    )
    samples = {name: Samples(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="atoll-bench-", dir="/tmp") as directory:
        place = Path(directory)
        say("fetching wheels")
        run(find_uv_bin(), "venv", "--quiet", "--python", sys.executable, place / "first")
        python = place / "first" / "bin" / "python"
        run(find_uv_bin(), "pip", "install", "--quiet", "--cache-dir", place / "uv", "--python", python, *PACKAGES)
        for number in range(rounds):
            told = {name: len(one.seconds) for name, one in samples.items()}
            say(f"round {number + 1} of {rounds}")
            own = place / f"own-{number}"
            drop_caches()
            with samples["own: build"].time():
                build(own, place / "uv", mode="hardlink")
            drop_caches()
            for name in ("own: first import", "own: import"):
                with samples[name].time():
                    run(own / "bin" / "python", "-c", IMPORTS)
            metadata = f"sqlite3://{place}/meta-{number}.db"
            run("juicefs", "format", metadata, "bench", "--bucket", f"{place}/objects-{number}/", "--trash-days", "1")
            with mounted(metadata, place / "mount"), samples["shared: build"].time():
                build(place / "mount" / "env", place / "uv", mode="copy")
            drop_caches()
            with mounted(metadata, place / "mount"):  # at the same path, as environments need, with nothing cached
                for name in ("shared: first import", "shared: import"):
                    with samples[name].time():
                        run(place / "mount" / "env" / "bin" / "python", "-c", IMPORTS)
            say(", ".join(f"{name} {one.seconds[told[name]]:.2f} s" for name, one in samples.items()))
    for name in names:
        median = sorted(samples[name].seconds)[rounds // 2]
        print(f"{name:<22}{median:8.2f} s")


if __name__ == "__main__":
    main()
