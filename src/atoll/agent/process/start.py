"""The start of a worker's process: state that is made before it has a lease."""

from __future__ import annotations

from atoll.agent import numba_cache, output, running
from atoll.agent.process import parts, program_state
from atoll.payload.program import namespaces


def prepare() -> None:
    """Prepare, once and before any fork, the state that every worker needs."""
    from atoll.payload import install, private_cloudpickle  # noqa: F401 - imported for the forks

    private_cloudpickle.cloudpickle()
    numba_cache.watch()
    output.unbuffer_c()
    parts.read()
    program_state.prepare()


def prepare_process() -> None:
    """Prepare, once in each forked process, the state that does not depend on the lease."""
    output.open_streams()
    running.hear_interrupts(always=True)  # a daemon that was started in the background ignores them
    namespaces.use_modules()
