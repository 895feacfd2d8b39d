"""Names of the program that code of a detached call may ask for, kept with it: nobody answers when it runs."""

from __future__ import annotations

from types import FunctionType, ModuleType

from atoll.model.spool import StoredNames
from atoll.payload.answers import Names, bounded_pickle
from atoll.payload.program.carrier import TooLarge
from atoll.payload.values import first_line, type_name

MOST_BYTES = 64 << 10
"""Size of the pickle of one name."""
MOST_BYTES_TOGETHER = 1 << 20
MOST_NAMES = 2000


def closed(names: Names | StoredNames | None) -> StoredNames | None:
    """Return the small values, functions and classes of a program's modules, and the reasons that others are left out."""
    if names is None or isinstance(names, StoredNames):
        return names
    values: dict[str, dict[str, bytes]] = {}
    left_out: dict[str, dict[str, str]] = {}
    left = MOST_BYTES_TOGETHER
    for module in names.modules:
        found, absent = values.setdefault(module, {}), left_out.setdefault(module, {})
        for name, value in names.pairs(module):
            if name.startswith("__") or len(found) + len(absent) >= MOST_NAMES:
                continue
            try:
                data = bounded_pickle(value, names.by_value, names.main, min(MOST_BYTES, left))
            except TooLarge:
                kind = "function" if isinstance(value, FunctionType) else type_name(value)
                absent[name] = f"the {kind} is too large to be kept with a detached call: pass it as an argument"
            except (Exception, SystemExit) as error:
                absent[name] = f"a `{type_name(value)}` cannot be sent: {first_line(error)}"
            else:
                if not isinstance(value, ModuleType):
                    left -= len(data)
                found[name] = data
    return StoredNames(values, left_out)
