"""The file with the variables that a sandbox's agent is started with (see `model.start_variables`).

Neither the command line of bubblewrap nor its environment may hold them: everybody on the machine could read the one,
and the other would reach the program that drops uid 0, for which loader variables are refused (`sandbox.policy`). A
shell reads them inside, and becomes the agent.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from atoll.sandbox.machine import SyntheticFile

PATH = "/opt/atoll/start"
_STARTER = ("/bin/sh", "-c", f'. {PATH}; exec "$@"', "sh")


def start_files(variables: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[SyntheticFile, ...]]:
    """Return the command that starts a program with these variables, and the files that it needs."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables]
    if not lines:
        return (), ()
    return _STARTER, (SyntheticFile(PATH, "".join(lines).encode()),)
