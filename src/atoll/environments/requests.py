"""Clients' requests about environments, as messages: names and JSON-compatible data in, data out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atoll.environments.built import preloads
from atoll.environments.built.records import EnvironmentRecord
from atoll.environments.store import EnvironmentStore
from atoll.environments.stores import UserEnvironments
from atoll.errors import ProtocolMismatch
from atoll.model.specs import EnvironmentSpec

NAMES = (
    "environments.list",
    "environments.show",
    "environments.build",
    "environments.lock",
    "environments.upgrade",
    "environments.prune",
)


async def handle(
    store: EnvironmentStore | UserEnvironments, name: str, arguments: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Perform a request named in `NAMES`.

    - `list`: gives `environments`, records with times in seconds since the epoch.
    - `show` (`key`, or its beginning): gives `environment`, `log`, `lock`, `preload` and `preload_data`, the modules
      that sandboxes of either trust import ahead.
    - `build` (`environment`, a spec): gives `environment`.
    - `lock` (`environment`): gives `lock`, the text.
    - `upgrade` (`environment`): gives `environment` and `changed`.
    - `prune` (`unused_seconds`, `dry_run`, `cache`, `environments`, `keys`): gives `removed` and `in_use`, records;
      with `cache` also `cache_bytes` and `freed_bytes`. Without `environments`, which is true by default, the caches
      alone are emptied; `keys`, if given, are those of the environments that may go.

    Raises:
        ValueError: an argument has the wrong type.
        AtollError: as the store does.
    """
    verb = name.removeprefix("environments.")
    if verb == "list":
        return {"environments": [record.to_data() for record in store.list()]}
    if verb == "show":
        record = store.find(_text(arguments, "key"))
        found = preloads.read(store.place(record.key), trusted=True)
        plain = preloads.read(store.place(record.key), trusted=False)
        return {
            "environment": record.to_data(),
            "log": store.text(record.key, "build.log"),
            "lock": store.text(record.key, "requirements.lock"),
            "preload": {"modules": list(found.modules), "refused": dict(found.refused)},
            "preload_data": {"modules": list(plain.modules), "refused": dict(plain.refused)},
        }
    if verb == "build":
        environment = await store.ensure(_spec(arguments), progress)
        return {"environment": store.find(environment.key).to_data()}
    if verb == "lock":
        return {"lock": await store.lock(_spec(arguments), progress)}
    if verb == "upgrade":
        environment, changed = await store.upgrade(_spec(arguments), progress)
        return {"environment": store.find(environment.key).to_data(), "changed": changed}
    if verb == "prune":
        return await _prune(store, arguments)
    raise ProtocolMismatch(f"the daemon does not know `{name}`", hint="`atoll stop` lets the newer version start")


async def _prune(store: EnvironmentStore | UserEnvironments, arguments: dict[str, Any]) -> dict[str, Any]:
    unused = arguments.get("unused_seconds", 0.0)
    if isinstance(unused, bool) or not isinstance(unused, (int, float)) or unused < 0:
        raise ValueError("`unused_seconds` must be a number of at least 0")
    keys = arguments.get("keys")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError("`keys` must be a list of texts")
    dry_run, cache = _flag(arguments, "dry_run"), _flag(arguments, "cache")
    only = keys if _flag(arguments, "environments", True) else []
    done = await store.prune(unused_seconds=float(unused), dry_run=dry_run, only=only)
    answer: dict[str, Any] = {"removed": _data(done.removed), "in_use": _data(done.in_use)}
    if cache:
        answer["cache_bytes"], answer["freed_bytes"] = await store.cache_sizes()
        if not dry_run:
            await store.clear_cache()
    return answer


def _data(records: tuple[EnvironmentRecord, ...]) -> list[dict[str, Any]]:
    return [record.to_data() for record in records]


def _spec(arguments: dict[str, Any]) -> EnvironmentSpec:
    return EnvironmentSpec.from_data(arguments.get("environment"))


def _text(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise ValueError(f"`{name}` must be text")
    return value


def _flag(arguments: dict[str, Any], name: str, default: bool = False) -> bool:
    value = arguments.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false")
    return value
