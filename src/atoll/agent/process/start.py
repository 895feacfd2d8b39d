"""The start of a worker's process: state that is made before it has a lease."""

from __future__ import annotations

import os

from atoll.agent import numba_cache, output, running
from atoll.agent.process import end, parts, program_state
from atoll.agent.process.state import ProcessState
from atoll.payload.program import namespaces
from atoll.payload.texts import load as texts_load

STACKS = 59
"""The signal that has a worker write its stacks: one of the real-time signals, which have no meaning of their own."""

STACKS_FILE = "atoll-stacks"


def prepare() -> None:
    """Prepare, once and before any fork, the state that every worker needs."""
    from atoll.payload import install, private_cloudpickle  # noqa: F401 - imported for the forks

    private_cloudpickle.cloudpickle()
    numba_cache.watch()
    texts_load.prepare()
    output.unbuffer_c()
    parts.read()
    look()


def look() -> None:
    """Look at the state that workers begin with, before they are forked: a child would copy each page that it looks at."""
    parts.prepare()
    program_state.prepare()
    end.prepare()


def prepare_process() -> ProcessState:
    """Prepare, once in each forked process, what does not depend on the lease; return its state, for `begin`."""
    output.open_streams()
    running.hear_interrupts(always=True)  # a daemon that was started in the background ignores them
    namespaces.use_modules()
    _prepare_stacks()
    return ProcessState()


def _prepare_stacks() -> None:
    """Have `STACKS` write the stacks of all threads to a file in memory, in C and whatever Python does (50 us)."""
    import faulthandler
    import fcntl

    descriptor = os.memfd_create(STACKS_FILE, os.MFD_CLOEXEC)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # the agent empties it
    faulthandler.register(STACKS, file=descriptor)
