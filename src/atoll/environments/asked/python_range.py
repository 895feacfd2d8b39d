"""Ranges of Python versions and markers of lock files, as PEP 440 and PEP 508 read them. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def fits(wanted: str, version: str) -> bool:
    """Return whether a version is in a range such as `>=3.11,<4`; a text that is no range fits."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # 12 ms, and few requests have a range

    try:
        return SpecifierSet(wanted).contains(version, prereleases=True)
    except InvalidSpecifier:
        return True


def holds(markers: Iterable[str]) -> bool:
    """Return whether one of the markers is true of this machine and Python; texts that are none are."""
    from packaging.markers import InvalidMarker, Marker  # as in `fits`

    try:
        return any(Marker(marker).evaluate() for marker in markers)
    except InvalidMarker:
        return True
