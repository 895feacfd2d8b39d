"""Weak references and registries of them, with their objects: the program that holds those is not in the worker."""

from __future__ import annotations

import weakref
from typing import Any


class HeldReference(weakref.ref[Any]):
    """A weak reference whose object lives as long as itself, for an object that the caller's program holds."""

    __slots__ = ("held",)
    held: Any


REFERENCES: tuple[Any, ...] = (weakref.ref, HeldReference)
MAPPINGS: tuple[Any, ...] = (weakref.WeakValueDictionary, weakref.WeakKeyDictionary)


def reduce_reference(reference: Any) -> tuple[Any, ...]:
    """Reduce a `weakref.ref`, alive or dead, with its callback."""
    return rebuild_reference, (reference(), reference.__callback__)


def rebuild_reference(obj: Any, callback: Any) -> Any:
    if obj is None:
        return weakref.ref(_Gone())
    made = HeldReference(obj, callback) if callback is not None else HeldReference(obj)
    made.held = obj
    return made


class _Gone:
    """Has no reference but weak ones."""


def reduce_mapping(mapping: Any) -> tuple[Any, ...]:
    """Reduce a `WeakValueDictionary` or a `WeakKeyDictionary`."""
    return type(mapping), (), list(mapping.items()), None, None, restore_mapping


def restore_mapping(mapping: Any, items: list[tuple[Any, Any]]) -> None:
    for key, value in items:
        mapping[key] = value
    mapping.held = items
