"""State of a worker's process: a call's changes do not reach the next one.

Theory of operation. After each call the parts of the state (`agent.process.parts`) are compared with those of before,
and put back where they differ. A worker whose state cannot be had again serves no other call. Two kinds of changes
stay: those of `setup_function`, and those that the import of a module makes, since the module itself stays. So each
outermost import is looked at, before and after. Context variables need no comparison: each call runs in a copy.

Another program's calls may come with the next lease. Random numbers, names that were added to `builtins`, and what
`agent.process.program_state` holds, go on as in one program until then, and are made anew for the next one.
"""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

from atoll.agent import output, preloading, terminal
from atoll.agent.process import left_running, parts, pool_helpers, program_state
from atoll.agent.process.parts import BUILTINS, forget_builtins, put_builtins_back

DECIMAL = "decimal_context"
"""The context variable of `decimal`, an object that arithmetic changes."""


class ProcessState:
    """State that a call finds and leaves."""

    def __init__(self) -> None:
        self._parts = parts.parts()
        self._now = parts.read()
        parts.read_start()
        self._wakeup = -1
        self._importing = False
        self._variables_set = False
        self._thread = threading.get_ident()
        self._program = program_state.ProgramState()
        self._names = [part.name for part in self._parts].index(BUILTINS)
        self._take(parts.own_builtins or dict(vars(builtins)))
        self._watch_imports()

    def begin(self) -> None:
        """Take the state that the first lease has given this process."""
        parts.begin()
        self._take(self._saved[self._names])

    def keep(self) -> None:
        """Take the present state for the one that calls find."""
        with terminal.without_variables():
            self._take(dict(vars(builtins)))
        self._program.keep()

    def _take(self, own_builtins: dict[str, Any]) -> None:
        """Take the present state, but for the names of `builtins`, which are given."""
        self._directory = os.getcwd()
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        now = self._now()
        now[self._names] = None
        self._saved = [*map(_copy, now)]
        self._saved[self._names] = own_builtins
        self._own_builtins: AbstractSet[str] = own_builtins.keys()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._set_wakeup(-1)
        self._context = contextvars.copy_context()
        left_running.keep()

    def _read(self) -> list[Any]:
        return [*map(_copy, self._now())]

    def _set_wakeup(self, descriptor: int) -> None:
        self._wakeup = signal.set_wakeup_fd(descriptor)
        if self._wakeup != descriptor:
            signal.set_wakeup_fd(self._wakeup)

    @property
    def variables_changed(self) -> bool:
        """True if a call or an import has set environment variables, and they are not put back yet."""
        return self._variables_set or os.environ._data != self._saved[0]  # type: ignore[attr-defined]

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run a call with context variables of its own."""
        context = self._context.copy()
        for variable, value in self._context.items():
            if variable.name == DECIMAL:
                context.run(variable.set, value.copy())
        return context.run(work, *arguments)

    def restore(self) -> str:
        """Put back what a call has changed; return the part that cannot be had again, empty for none."""
        try:
            now = self._now()
            changed = now[0] != self._saved[0]
            lost = self._put_back(now) if now != self._saved else ""
            if (descriptor := signal.set_wakeup_fd(self._wakeup)) != self._wakeup:
                del descriptor  # it was the call's own
            changed = os.umask(self._umask) != self._umask or changed
            self._restore_streams()
            self._restore_directory()
            if changed:
                left_running.end_pools()
            lost = lost or left_running.found()
            return lost or pool_helpers.lost_tracker(self._saved[0], self._umask)
        except Exception as error:  # an object that does not compare, for example
            return f"state: {type(error).__name__}"

    def restore_briefly(self) -> None:
        """Put back what a call that is excused from more may have changed by a library (see `brief_calls`)."""
        try:  # `contextlib.suppress` would cost each warm call 0.7 us
            self._restore_streams()
            self._restore_directory()
        except Exception:  # noqa: S110 - the next whole look says what is lost
            pass

    def _put_back(self, now: list[Any]) -> str:
        lost = ""
        for number, (part, old, new) in enumerate(zip(self._parts, self._saved, now, strict=True)):
            if part.name == BUILTINS:
                self._saved[number] = put_builtins_back(old, new)
            elif new != old:
                try:
                    part.write(_copy(old), new)
                except Exception:
                    lost = part.name
        return lost

    def _restore_streams(self) -> None:
        stdin, stdout, stderr = self._streams
        try:
            usable = not (stdin.closed or stdout.closed or stderr.closed)
        except ValueError:  # detached
            usable = False
        if not usable:
            output.renew_streams()
            self._streams = sys.__stdin__, sys.__stdout__, sys.__stderr__
            stdin, stdout, stderr = self._streams
        if sys.stdin is not stdin or sys.stdout is not stdout or sys.stderr is not stderr:
            output.renew_streams()  # what took a stream's place may close the file below both
            sys.stdin, sys.stdout, sys.stderr = self._streams

    def _restore_directory(self) -> None:
        try:
            moved = os.getcwd() != self._directory
        except OSError:
            moved = True
        if moved:
            os.chdir(self._directory)

    def begin_lease(self) -> None:
        """Give the next program, which may be another one, state of its own."""
        left_running.end_pools()
        forget_builtins(self._saved[self._names].keys() - self._own_builtins)
        self._saved[self._names] = dict(vars(builtins))
        output.renew_streams()
        if "random" in sys.modules:
            sys.modules["random"].seed()
        preloading.reseed()
        self._program.begin()

    def lost(self) -> str:
        """Return the part that another program could not have again, empty for none."""
        return self._program.lost()

    # --- changes that stay ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """Let the changes stay that are made while the context is open."""
        self._importing = True
        program = program_state.read()
        before, variables = self._read(), contextvars.copy_context()
        try:
            yield
        finally:
            self._importing = False
            self._adopt(before, variables, program)

    def _watch_imports(self) -> None:
        """Have every outermost import of this process looked at."""
        bootstrap: Any = importlib._bootstrap
        load = bootstrap._find_and_load

        def find_and_load(name: str, import_: Any) -> Any:
            if self._importing or threading.get_ident() != self._thread:
                return load(name, import_)
            with self.lasting():
                return load(name, import_)

        # Under this name the interpreter leaves the frame out of tracebacks, as it does with those around it.
        find_and_load.__code__ = find_and_load.__code__.replace(
            co_filename=load.__code__.co_filename, co_name=load.__code__.co_name
        )
        bootstrap._find_and_load = find_and_load

    def _adopt(self, before: list[Any], variables: contextvars.Context, program: Any) -> None:
        """Take the changes that were made for part of the state that calls find."""
        with contextlib.suppress(Exception):
            now = self._read()
            if now != before:
                self._variables_set = self._variables_set or now[0] != before[0]
                self._saved = [_merged(*one) for one in zip(self._saved, before, now, strict=True)]
                self._own_builtins |= now[self._names].keys() - before[self._names].keys()
            for variable, value in contextvars.copy_context().items():
                if variables.get(variable) is not value:
                    self._context.run(variable.set, value.copy() if variable.name == DECIMAL else value)
            self._program.adopt(program)
            left_running.keep_threads()


def _copy(value: Any) -> Any:
    kind = type(value)
    return list(value) if kind is list else dict(value) if kind is dict else value


def _merged(saved: Any, before: Any, now: Any) -> Any:
    """Return the saved value with the changes from `before` to `now`."""
    if now is before or now == before:
        return saved
    if saved == before:
        return now
    if type(now) is dict:
        gone = before.keys() - now.keys()
        changed = {key: value for key, value in now.items() if key not in before or before[key] != value}
        return {key: value for key, value in saved.items() if key not in gone} | changed
    if type(now) is list:  # with the call's own entries left out
        return [one for one in now if one in saved or one not in before]
    if type(now) is tuple and len(now) == len(before) == len(saved):
        return tuple(_merged(*one) for one in zip(saved, before, now, strict=True))
    return now
