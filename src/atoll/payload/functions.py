"""The caller's side of a call's payload: pickle the function and its arguments, unpickle the result.

The rule for functions: the module that defines an isolated function is treated like `__main__`. Its functions and
classes travel by value, so that what is rebound in it here is seen by the next call, and so that it need not be
importable in the environment. Once its file has been edited since it was imported, the disk wins: the function
then travels by name, and the worker imports the file as it is. Other modules of the project always travel by name,
with their source (`sdk.modules.discover`).
"""

from __future__ import annotations

import functools
import inspect
import operator
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

from atoll import file_stamp
from atoll.blake2 import blake2b
from atoll.errors import SerializationError
from atoll.payload import pickling, private_cloudpickle, project
from atoll.payload.answers import Names
from atoll.payload.captures import Captures
from atoll.payload.program.carrier import Carrier
from atoll.payload.texts.dump import NONE, Texts, pack
from atoll.payload.unpicklable import describe_captured, failing_part, failure, hint_of, without_own_frames
from atoll.payload.values import first_line, import_function, type_name

MOST_KEPT_BYTES = 1 << 20
"""Functions up to this size travel once and then by their digest; a worker keeps several."""


class PickledFunction(NamedTuple):
    """A function's pickle.

    Args:
        captures: the places that it was read from.
        data: the pickle.
        digest: of the pickle; empty over `MOST_KEPT_BYTES`.
        reusable: a worker may keep the function that it unpickles.
        by_value: the modules whose functions and classes travel by value.
        texts: those of the files that the function's code is from.
    """

    captures: Captures
    data: bytes
    digest: str
    reusable: bool
    by_value: frozenset[str]
    texts: Texts = NONE

    def full_digest(self) -> str:
        """Return the digest for any size."""
        return self.digest or _digest(self.data)


class FunctionPickler:
    """Pickles one function for each of its calls, anew where anything that it uses has changed.

    Safe to use from several threads.

    Args:
        function: any callable.
        local_modules: as `@isolated` takes it; None lets the project's modules travel.
        source: `stamps.source_of(function)`, taken while the function's module was imported; by default now.
        own_lines: of the files that its code is from, send the code's own lines alone.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        local_modules: Sequence[Any] | None = None,
        source: tuple[str, file_stamp.Stamp] | None = None,
        own_lines: bool = False,
    ) -> None:
        self.function = function
        self.own_lines = own_lines
        self._local_modules = local_modules
        self._source = source if source is not None else file_stamp.source_of(function)
        self._made: PickledFunction | None = None
        self._packed: tuple[list[CodeType], Texts] = [], NONE

    def dumps(self) -> tuple[bytes, bool]:
        """Return the function's present pickle, and whether a worker may keep the unpickled function.

        Raises:
            SerializationError: it cannot be pickled; the message names the part that cannot.
        """
        made = self.current()
        return made.data, made.reusable

    def current(self) -> PickledFunction:
        """Return the function's pickle as it is now: the same object while nothing that it depends on has changed.

        Raises:
            SerializationError: as `dumps`.
        """
        made = self._made
        if made is None or not made.captures.unchanged() or self._edited():
            self._made = made = self._make()
        return made

    @property
    def by_value(self) -> frozenset[str]:
        """The modules whose functions and classes travel by value, beside `__main__`; as of the last `dumps`."""
        return self._made.by_value if self._made is not None else frozenset()

    def dumps_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], codes: list[CodeType] | None = None
    ) -> tuple[bytes, list[Any]]:
        """As the module's `dumps_arguments`, with the classes of the function's own module as the function has them."""
        if pickling.is_plain((args, kwargs)):
            return pickle.dumps((args, kwargs), pickling.PROTOCOL), []
        carrier = Carrier(self.by_value, self._main(), trusted=not self.own_lines)
        return dumps_arguments(
            args, kwargs, by_value=self.by_value, function=self.function, codes=codes, carrier=carrier
        )

    def _make(self) -> PickledFunction:
        module = self._own_module()
        if module is not None and self._edited() and self._importable():
            data, _ = pickling.dumps(_Imported(module, self.function.__qualname__))
            return _pickled(Captures(None), data, True, frozenset())
        by_value = frozenset({module} if module else ())
        captures = Captures(self.function, by_value)
        codes: list[CodeType] = []
        carrier = Carrier(by_value, self._main(), trusted=not self.own_lines)
        try:
            data, _ = pickling.dumps(self.function, by_value, out_of_band=False, codes=codes, carrier=carrier)
        except Exception as error:
            if module is None or not self._importable():
                raise self._refused(error, by_value) from without_own_frames(error)
            data, _ = pickling.dumps(_Imported(module, self.function.__qualname__))
            return _pickled(captures, data, False, frozenset())
        captures.add(carrier)
        last = self._packed[0]
        if len(codes) != len(last) or not all(map(operator.is_, codes, last)):  # an edit makes other code
            self._packed = codes, pack(codes, self.own_lines)
        return _pickled(captures, data, captures.constant, by_value)._replace(texts=self._packed[1])

    def names(self) -> Names:
        """Return the names that code of the function may ask for while it runs."""
        return Names(self.by_value, self._main())

    def _main(self) -> dict[str, Any] | None:
        """Return the globals that the function knows as `__main__`; None for those of this process."""
        namespace: Any = getattr(self.function, "__globals__", None)
        return namespace if isinstance(namespace, dict) and namespace.get("__name__") == "__main__" else None

    def _own_module(self) -> str | None:
        """The function's module, if it is one of the project's that is to be treated like `__main__`."""
        named = self.function
        while isinstance(named, (functools.partial, MethodType)):
            named = named.func if isinstance(named, functools.partial) else named.__func__
        name = getattr(named, "__module__", None)
        if not isinstance(named, (FunctionType, type)) or not isinstance(name, str) or name == "__main__":
            return None
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name.partition(".")[0] in project.OWN_PACKAGES or project.in_environment(file):
            return None
        return name

    def _edited(self) -> bool:
        if self._source is None or file_stamp.take(self._source[0]) == self._source[1]:
            return False
        return self._own_module() is not None and self._importable()

    def _importable(self) -> bool:
        """Return whether a worker could find the function by its name."""
        if type(self.function) is not FunctionType:
            return False
        name, qualname = self.function.__module__, self.function.__qualname__
        if "<" in qualname or not _travels(name, self._local_modules):
            return False
        try:
            found = import_function(name, qualname)
        except Exception:
            return False  # replaced here by something else, which the file does not say
        return bool((found.__module__, found.__qualname__) == (name, qualname))

    def _refused(self, error: Exception, by_value: frozenset[str]) -> SerializationError:
        name = getattr(self.function, "__qualname__", None) or type_name(self.function)
        description, culprit = describe_captured(self.function, by_value)
        return SerializationError(
            f"the function `{name}` cannot be sent: {description or first_line(error)}",
            hint=hint_of(culprit if description else self.function, captured=True),
        )


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _pickled(captures: Captures, data: bytes, reusable: bool, by_value: frozenset[str]) -> PickledFunction:
    digest = _digest(data) if len(data) <= MOST_KEPT_BYTES else ""
    return PickledFunction(captures, data, digest, reusable, by_value)


class _Imported:
    """Pickles as the import of a function by its name."""

    def __init__(self, module: str, qualname: str) -> None:
        self._name = module, qualname

    def __reduce__(self) -> tuple[Any, ...]:
        return import_function, self._name


def _travels(module: str, local_modules: Sequence[Any] | None) -> bool:
    if local_modules is None:
        return True
    top = module.partition(".")[0]
    return any(top == os.path.basename(str(name).rstrip("/\\")).partition(".")[0] for name in local_modules)


# --- arguments --------------------------------------------------------------------------------------------------


def dumps_arguments(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    by_value: frozenset[str] = frozenset(),
    function: Callable[..., Any] | None = None,
    codes: list[CodeType] | None = None,
    carrier: Carrier | None = None,
) -> tuple[bytes, list[Any]]:
    """Pickle a call's arguments; return the pickle and its out-of-band buffers, views of the arguments' memory.

    Args:
        by_value: as `pickling.dumps` takes it.
        function: the called one, for the names of positional arguments in errors.
        codes: gets the code objects that travel with the arguments.
        carrier: as `pickling.dumps` takes it.

    Raises:
        SerializationError: an argument cannot be pickled; the message names it and the part that cannot.
    """
    try:
        if pickling.is_plain((args, kwargs)):
            return pickle.dumps((args, kwargs), pickling.PROTOCOL), []
        return pickling.dumps((args, kwargs), by_value, codes=codes, carrier=carrier)
    except Exception as error:
        raise _argument_refused(args, kwargs, by_value, function, error) from without_own_frames(error)


def _argument_refused(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    by_value: frozenset[str],
    function: Callable[..., Any] | None,
    error: Exception,
) -> SerializationError:
    for name, value in [*zip(_names(function, len(args)), args, strict=True), *kwargs.items()]:
        reason = failure(value, by_value)
        if reason is None:
            continue
        path, culprit = failing_part(name if name.isidentifier() else "it", value, by_value)
        message = f"the argument `{name}` cannot be sent: a `{type_name(value)}`: {first_line(reason)}"
        if culprit is not value:
            message += f" (`{path}` is a `{type_name(culprit)}`)"
        return SerializationError(message, hint=hint_of(culprit), argument=name)
    return SerializationError(f"the arguments cannot be sent: {first_line(error)}", hint="pass plain data")


def _names(function: Callable[..., Any] | None, count: int) -> list[str]:
    """Return the names of the first `count` positional arguments; their positions if unknown."""
    names = [str(position) for position in range(count)]
    try:
        parameters = list(inspect.signature(function).parameters.values()) if function is not None else []
    except (TypeError, ValueError):
        return names
    for position, parameter in enumerate(parameters[:count]):
        if parameter.kind is parameter.VAR_POSITIONAL:
            names[position:] = [f"{parameter.name}[{index}]" for index in range(count - position)]
            break
        names[position] = parameter.name
    return names


# --- results ----------------------------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    """Unpickles a result; classes that this process has already are used as they are, never overwritten.

    A class of `__main__` travels by value. cloudpickle knows it again when it comes back, but would replace its
    methods by the worker's copies, whose globals are not this program's.

    Args:
        absent: makes a stand-in for something that cannot be imported here, from its name and the error.
    """

    def __init__(self, data: Any, buffers: Sequence[Any], absent: Callable[[str, Exception], Any] | None) -> None:
        super().__init__(_Reader(data), buffers=buffers)
        self._absent = absent
        self._module = private_cloudpickle.cloudpickle()
        self._known: set[int] = set()
        self._keep: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        if module == private_cloudpickle.NAME:
            if name == "_class_setstate":
                return self._set_state
            if name in ("_make_skeleton_class", "_make_skeleton_enum"):
                make = getattr(self._module, name)
                return lambda *args: self._make_class(make, args)
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError) as error:
            if self._absent is None:
                raise
            return self._absent(f"{module}.{name}", error)

    def _make_class(self, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        identifier = args[-2]
        found = self._module._DYNAMIC_CLASS_TRACKER_BY_ID.get(identifier) if identifier is not None else None
        if found is None:
            return make(*args)
        self._known.add(id(found))
        self._keep.append(found)
        return found

    def _set_state(self, cls: Any, state: Any) -> Any:
        return cls if id(cls) in self._known else self._module._class_setstate(cls, state)


class _Reader:
    """Memory as a file: large bytes in the pickle are copied once, to where they stay."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._view = memoryview(data)
        self._place = 0

    def read(self, count: int) -> bytes:
        self._place += count
        return bytes(self._view[self._place - count : self._place])

    def readinto(self, target: Any) -> int:
        found = self._view[self._place : self._place + len(target)]
        target[: len(found)] = found
        self._place += len(found)
        return len(found)

    def readline(self) -> bytes:
        return self.read(self._data.find(b"\n", self._place) + 1 - self._place)


_SEARCHED_BYTES = 1 << 20
_NAME = private_cloudpickle.NAME.encode()


def loads_by_value(
    data: Any, buffers: Sequence[Any] = (), absent: Callable[[str, Exception], Any] | None = None
) -> Any:
    """Unpickle a worker's pickle, without changing classes that this process knows; see `_Unpickler`."""
    if len(data) > _SEARCHED_BYTES or data.find(_NAME) >= 0 or absent is not None:
        return _Unpickler(data, buffers, absent).load()
    return pickle.loads(data, buffers=buffers)


def loads_result(data: Any, buffers: Sequence[Any] = ()) -> Any:
    """Return the result that the worker pickled.

    Raises:
        SerializationError: it cannot be unpickled here; a missing module is named.
    """
    try:
        return loads_by_value(data, buffers)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise SerializationError(
                f"the result cannot be unpickled here: no module `{error.name}`",
                hint=f"install what provides `{error.name}` in this environment, or return plain data",
                module=error.name,
            ) from without_own_frames(error)
        raise SerializationError(
            f"the result cannot be unpickled here: {type(error).__name__}: {first_line(error)}",
            hint="install the versions that the function's environment has, or return plain data",
        ) from without_own_frames(error)
