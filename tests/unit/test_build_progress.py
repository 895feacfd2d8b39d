"""The state of a build, as it is read from the builder's lines."""

from __future__ import annotations

import pytest

from atoll.model.build_progress import BuildLine, BuildProgress, Reader, line_of, shown

UV = """Building environment 3f9c2a7712345678 with Python 3.12.1: torch
Using Python 3.12.1 environment at: /opt/atoll/env
Resolved 32 packages in 1.30s
Downloading torch (858.1MiB)
Downloading numpy (16.0MiB)
Building pytoml==1.0
 Downloaded numpy
 Downloaded torch
Prepared 32 packages in 9s
Installed 32 packages in 109ms
 + numpy==2.4.6
Compiling bytecode"""
STEPS = [
    "resolving",
    "resolving",
    "fetching 32 packages",
    "downloading 0 of 1 \u00b7 0 B of 858 MiB \u00b7 torch",
    "downloading 0 of 2 \u00b7 0 B of 874 MiB \u00b7 torch",
    "building pytoml==1.0",
    "downloading 1 of 2 \u00b7 16 of 874 MiB \u00b7 torch",
    "downloading 2 of 2 \u00b7 874 of 874 MiB",
    "installing 32 packages",
    "installing 32 packages",
    "installing 32 packages",
    "compiling 32 packages",
]
CONDA = """Building environment 3f9c2a77 with Python 3.12: numpy
Resolving
Resolved 3 packages, 20.0 MiB
Downloading numpy 1.26.4 (7.5 MiB)
Downloaded numpy
Linking 3 packages"""


def test_uv_is_followed() -> None:
    """Each line of uv, through a pipe, gives the step that a person reads."""
    reader = Reader("3f9c2a7712345678")
    assert [shown(reader.take(line)) for line in UV.splitlines()] == STEPS


def test_conda_is_followed() -> None:
    """The program that solves and links with rattler prints lines of the same kind."""
    reader = Reader("3f9c2a77")
    assert [shown(reader.take(line)) for line in CONDA.splitlines()] == [
        "resolving",
        "resolving",
        "fetching 3 packages",
        "downloading 0 of 1 \u00b7 0 B of 7.5 MiB \u00b7 numpy",
        "downloading 1 of 1 \u00b7 7.5 of 7.5 MiB",
        "installing 3 packages",
    ]


def test_bytes_of_running_downloads_are_told_once() -> None:
    """While a download runs, a look at the disk that finds something new gives a state without a line."""
    reader = Reader("3f9c2a77")
    assert reader.unpacked(5) is None
    reader.take("Downloading torch (858.1MiB)")
    told = reader.unpacked(300 << 20)
    assert told is not None
    assert (told, shown(told)) == ("", "downloading 0 of 1 \u00b7 0 B of 858 MiB \u00b7 300 MiB unpacked \u00b7 torch")
    assert reader.unpacked(300 << 20) is None
    reader.take(" Downloaded torch")
    assert reader.unpacked(1) is None


def test_a_built_environment_is_one_line() -> None:
    """Its key, its packages and its size; the numbers of the build itself win over those read from lines."""
    reader = Reader("3f9c2a77")
    ended = BuildProgress("3f9c2a77", "built", packages=32, size_bytes=2 << 30, seconds=24.0)
    told = reader.take(BuildLine("Built environment 3f9c2a77 in 24.0 s", ended))
    assert (shown(told), told.progress.text()) == ("", "built env 3f9c2a77 \u00b7 32 packages \u00b7 2.0 GiB")
    assert Reader("3f9c2a77").take("Built environment 3f9c2a77 in 24.0 s").progress.seconds == 24.0


@pytest.mark.parametrize(
    "data", [None, 3, [], {"step": 3}, {"files": "many"}, {"bytes": -1}, {"bytes": 1e30}, {"seconds": True}]
)
def test_what_is_no_state_is_a_plain_line(data: object) -> None:
    """A message from elsewhere with something else beside its line keeps the line alone."""
    assert type(line_of({"line": "text", "build": data})) is str


def test_a_state_travels_as_data() -> None:
    """It comes back as it was, long texts cut."""
    progress = BuildProgress("3f9c2a77", "downloading", "x" * 500, 3, 2, 1, 100, 50, 7)
    told = line_of({"line": "a", "build": progress.to_data()})
    assert isinstance(told, BuildLine)
    assert told.progress.detail == "x" * 100
    assert told.progress.bytes == 100
