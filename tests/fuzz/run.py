"""Fuzz one target with atheris: `python tests/fuzz/run.py TARGET [libFuzzer options]`; `make fuzz` runs all."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

if sys.version_info < (3, 12):
    from tests.fuzz import atheris_mended

    atheris_mended.mend()

with atheris.instrument_imports(include=["atoll", "tests.fuzz"]):
    # imported late by the worker, which would be too late to see its branches
    import atoll.payload.plain.arrays_tables  # noqa: F401
    from tests.fuzz import harness, peers
    from tests.fuzz.seeds import write_seeds


def main() -> None:
    """Run until libFuzzer has enough."""
    name, *options = sys.argv[1:]
    target = {**harness.TARGETS, **peers.TARGETS}[name]
    corpus = Path(__file__).parent / ".corpus" / name
    write_seeds(name, corpus)

    def one(data: bytes) -> None:
        target(data)

    atheris.Setup([sys.argv[0], str(corpus), "-max_len=65536", "-timeout=20", "-rss_limit_mb=2048", *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
