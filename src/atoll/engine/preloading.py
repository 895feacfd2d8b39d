"""Packages that the workers of a sandbox find imported: learned from earlier calls, kept with the environment.

Workers say which modules of their environment a call has imported. Each sandbox of the environment is asked to import
them ahead, the ones that live now and later ones after their first call (see `agent.preloading`), and answers with
the modules that it has imported and those that it has refused. Reports of trusted sandboxes and of others are kept
apart: a name is enough to have code of a hostile package run ahead of a call that never imports it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from atoll.engine.pool_state import PoolSandbox, PoolWorker
from atoll.environments.built import preloads
from atoll.environments.built.preloads import MOST_MODULES, Preloads
from atoll.environments.built.records import Environment
from atoll.model.specs import SandboxKey

log = logging.getLogger("atoll.preloading")

_NAME = re.compile(r"\w[\w.]{0,199}")
MOST_REASON = 500


class Preloading:
    """Packages that the sandboxes of one pool preload.

    Args:
        sandboxes: those that live now; looked at, never changed.
        environments: those that have been asked for, by key.
        variables: returns the variables of a sandbox with these GPUs.
        tell: sends to a sandbox's agent.
    """

    def __init__(
        self,
        sandboxes: Mapping[str, PoolSandbox],
        environments: Mapping[str, Environment],
        variables: Callable[[tuple[str, ...]], Mapping[str, str]],
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._sandboxes = sandboxes
        self._environments = environments
        self._variables = variables
        self._tell = tell
        self._known: dict[tuple[Path, bool], Preloads] = {}  # by directory and trust
        self._asked: dict[str, tuple[str, ...]] = {}  # of each sandbox
        self._owed: Counter[str] = Counter()  # answers of each sandbox: an agent that floods is heard that often

    def _of(self, key: SandboxKey) -> Preloads:
        place = self._place(key)
        known = self._known.get((place, key.trusted))
        if known is None:
            known = preloads.read(place, trusted=key.trusted)
            self._known[place, key.trusted] = known
        return known

    def _place(self, key: SandboxKey) -> Path:
        return preloads.place_of(self._environments[key.environment].directory, key.user)

    def _learn(self, key: SandboxKey, found: Preloads) -> bool:
        if found == self._of(key):
            return False
        self._known[self._place(key), key.trusted] = found
        preloads.write(self._place(key), found, trusted=key.trusted)
        return True

    def begin(self, name: str) -> None:
        """Ask a sandbox to import the packages that its key or its environment's record names."""
        sandbox = self._sandboxes.get(name)
        if sandbox is None or sandbox.unwanted:
            return
        key = sandbox.key
        modules = self._of(key).modules if key.preload is None else key.preload
        if modules and self._asked.get(name) != modules:
            self._asked[name] = modules
            self._owed[name] += 1
            self._tell(name, {"type": "preload", "modules": modules, "env": dict(self._variables(key.gpus))})

    def imported(self, worker: PoolWorker, message: Mapping[str, Any]) -> None:
        """Record the imports of a call.

        Raises:
            ValueError: the message is malformed.
        """
        names = message.get("modules")
        if not _are_names(names):
            raise ValueError("`imported` names something else than modules")
        key = worker.key.sandbox
        if key.preload is not None:
            return
        known = self._of(key)
        if message.get("variables_changed"):
            reason = "a call changed environment variables before its import"
            self._learn(key, known.with_outcome((), (), dict.fromkeys(names, reason)))
        elif self._learn(key, known.with_imported(names)):
            for name, sandbox in list(self._sandboxes.items()):
                same = sandbox.key.environment == key.environment and sandbox.key.trusted == key.trusted
                if same and sandbox.key.preload is None and sandbox.lived:
                    self.begin(name)

    def finished(self, name: str, message: Mapping[str, Any]) -> None:
        """Record the packages that a sandbox has imported ahead, and those that it has refused."""
        if not self._owed[name]:
            return
        self._owed[name] -= 1
        sandbox, asked = self._sandboxes[name], self._asked.get(name, ())
        needed, refused = message.get("modules"), message.get("refused")
        if not _are_names(needed) or not isinstance(refused, dict) or not _are_names(list(refused)):
            return
        refused = {str(module): str(reason)[:MOST_REASON] for module, reason in refused.items() if module in asked}
        for module, reason in refused.items():
            log.info("module_not_preloaded environment=%s module=%s reason=%s", sandbox.key.environment, module, reason)
        if sandbox.key.preload is None:
            found = self._of(sandbox.key).with_outcome(asked, needed, refused)
            self._learn(sandbox.key, found)
            self._asked[name] = tuple(one for one in found.modules)

    def refused(self, name: str, message: Mapping[str, Any]) -> None:
        """Record a module that a sandbox cannot import ahead."""
        module, reason = message.get("module"), str(message.get("reason"))[:MOST_REASON]
        asked = self._asked.get(name, ())
        if module not in asked:
            return
        self._asked[name] = tuple(one for one in asked if one != module)  # heard once
        key = self._sandboxes[name].key
        log.info("module_not_preloaded environment=%s module=%s reason=%s", key.environment, module, reason)
        if key.preload is None:
            self._learn(key, self._of(key).with_outcome((), (), {str(module): reason}))

    def ended(self, name: str) -> None:
        """Forget a sandbox."""
        self._asked.pop(name, None)
        self._owed.pop(name, None)


def _are_names(names: Any) -> TypeGuard[list[str]]:
    return (
        isinstance(names, list)
        and len(names) <= MOST_MODULES
        and all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
    )
