"""Packages that the workers of a sandbox find imported: learned from earlier calls, kept with the environment.

Workers say which modules of their environment a call has imported. Each sandbox of the environment is asked to import
them ahead, the ones that live now and later ones after their first call (see `agent.preloading`), and answers with
the modules that it has imported and those that it has refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from atoll.engine.pool_state import PoolSandbox, PoolWorker
from atoll.environments.built import preloads
from atoll.environments.built.preloads import MOST_MODULES, Preloads
from atoll.environments.built.records import Environment

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
        self._known: dict[str, Preloads] = {}
        self._asked: dict[str, tuple[str, ...]] = {}  # of each sandbox

    def _of(self, environment: str) -> Preloads:
        if environment not in self._known:
            self._known[environment] = preloads.read(self._environments[environment].directory)
        return self._known[environment]

    def _learn(self, environment: str, found: Preloads) -> bool:
        if found == self._of(environment):
            return False
        self._known[environment] = found
        preloads.write(self._environments[environment].directory, found)
        return True

    def begin(self, name: str) -> None:
        """Ask a sandbox to import the packages that its key or its environment's record names."""
        sandbox = self._sandboxes.get(name)
        if sandbox is None or sandbox.unwanted:
            return
        key = sandbox.key
        modules = self._of(key.environment).modules if key.preload is None else key.preload
        if modules and self._asked.get(name) != modules:
            self._asked[name] = modules
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
        known = self._of(key.environment)
        if message.get("variables_changed"):
            reason = "a call changed environment variables before its import"
            self._learn(key.environment, known.with_outcome((), (), dict.fromkeys(names, reason)))
        elif self._learn(key.environment, known.with_imported(names)):
            for name, sandbox in list(self._sandboxes.items()):
                if sandbox.key.environment == key.environment and sandbox.key.preload is None and sandbox.lived:
                    self.begin(name)

    def finished(self, name: str, message: Mapping[str, Any]) -> None:
        """Record the packages that a sandbox has imported ahead, and those that it has refused."""
        sandbox, asked = self._sandboxes[name], self._asked.get(name, ())
        needed, refused = message.get("modules"), message.get("refused")
        if not _are_names(needed) or not isinstance(refused, dict) or not _are_names(list(refused)):
            return
        refused = {str(module): str(reason)[:MOST_REASON] for module, reason in refused.items() if module in asked}
        for module, reason in refused.items():
            log.info("module_not_preloaded environment=%s module=%s reason=%s", sandbox.key.environment, module, reason)
        if sandbox.key.preload is None:
            found = self._of(sandbox.key.environment).with_outcome(asked, needed, refused)
            self._learn(sandbox.key.environment, found)
            self._asked[name] = tuple(one for one in found.modules)

    def refused(self, name: str, message: Mapping[str, Any]) -> None:
        """Record a module that a sandbox cannot import ahead."""
        module, reason = message.get("module"), str(message.get("reason"))[:MOST_REASON]
        if module not in self._asked.get(name, ()):
            return
        environment, preload = self._sandboxes[name].key.environment, self._sandboxes[name].key.preload
        log.info("module_not_preloaded environment=%s module=%s reason=%s", environment, module, reason)
        if preload is None:
            self._learn(environment, self._of(environment).with_outcome((), (), {str(module): reason}))

    def ended(self, name: str) -> None:
        """Forget a sandbox."""
        self._asked.pop(name, None)


def _are_names(names: Any) -> TypeGuard[list[str]]:
    return (
        isinstance(names, list)
        and len(names) <= MOST_MODULES
        and all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
    )
