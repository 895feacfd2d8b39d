"""Functions, serverless, on machines that you own, with a `/data` that stays.

The names are imported on first use, so that `import atoll` stays cheap.
"""

from __future__ import annotations

TYPE_CHECKING = False  # of `typing`, which is not imported here: a module of the project may have its name
__version__ = "0.1.0"

if TYPE_CHECKING:
    from typing import Any

    from atoll import errors as errors
    from atoll.host.local import LocalHost as LocalHost
    from atoll.host.local import local as local
    from atoll.host.remote.remote_host import Host as Host
    from atoll.host.remote.remote_host import cloud as cloud
    from atoll.sdk.apps.lookup import Function as Function
    from atoll.sdk.caching import cached as cached
    from atoll.sdk.data.download import download as download
    from atoll.sdk.data.download import download_file as download_file
    from atoll.sdk.data.download import download_weights as download_weights
    from atoll.sdk.data.sync import sync_dir as sync_dir
    from atoll.sdk.data.volume import Volume as Volume
    from atoll.sdk.decorator import isolated as isolated
    from atoll.sdk.detached.batch import BatchHandle as BatchHandle
    from atoll.sdk.detached.handle import CallHandle as CallHandle
    from atoll.sdk.function import IsolatedFunction as IsolatedFunction
    from atoll.sdk.futures import CallFuture as CallFuture
    from atoll.sdk.retries import Retries as Retries

_WHERE = {
    "isolated": "atoll.sdk.decorator",
    "IsolatedFunction": "atoll.sdk.function",
    "BatchHandle": "atoll.sdk.detached.batch",
    "CallFuture": "atoll.sdk.futures",
    "CallHandle": "atoll.sdk.detached.handle",
    "Function": "atoll.sdk.apps.lookup",
    "Retries": "atoll.sdk.retries",
    "cached": "atoll.sdk.caching",
    "download": "atoll.sdk.data.download",
    "download_file": "atoll.sdk.data.download",
    "download_weights": "atoll.sdk.data.download",
    "sync_dir": "atoll.sdk.data.sync",
    "Volume": "atoll.sdk.data.volume",
    "local": "atoll.host.local",
    "LocalHost": "atoll.host.local",
    "Host": "atoll.host.remote.remote_host",
    "cloud": "atoll.host.remote.remote_host",
}

__all__ = [
    "BatchHandle",
    "CallFuture",
    "CallHandle",
    "Function",
    "Host",
    "IsolatedFunction",
    "LocalHost",
    "Retries",
    "Volume",
    "__version__",
    "cached",
    "cloud",
    "download",
    "download_file",
    "download_weights",
    "errors",
    "isolated",
    "local",
    "sync_dir",
]


if not TYPE_CHECKING:  # type checkers would take any name for one of Atoll's

    def __getattr__(name: str) -> Any:
        if name == "errors" or name in _WHERE:
            module = _import_own(_WHERE.get(name, "atoll.errors"), name)
            if name == "errors":
                return module
            value = getattr(module, name)
            globals()[name] = value
            return value
        raise AttributeError(f"module `atoll` has no attribute `{name}`")


def _import_own(module: str, name: str) -> Any:
    """Import a module of Atoll's; an error names the file that shadows a module of Python's.

    Raises:
        ImportError: it cannot be imported. (`from atoll import ...` would turn an `AttributeError` into "cannot import
            name" and hide the cause.)
    """
    import importlib

    try:
        return importlib.import_module(module)
    except Exception as error:
        from atoll import shadows

        hint = shadows.hint(error)
        text = f"`{name}` of Atoll cannot be imported: {type(error).__name__}: {error}"
        raise ImportError(f"{text} ({hint})" if hint else text, name=getattr(error, "name", None) or module) from error


def __dir__() -> list[str]:
    return sorted(__all__)
