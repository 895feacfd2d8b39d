"""The same objects as `atoll`, under the import that existing programs use."""

from __future__ import annotations

TYPE_CHECKING = False  # of `typing`, which is not imported here: a module of the project may have its name

if TYPE_CHECKING:
    from typing import Any

    from atoll import LocalHost as LocalHost
    from atoll import Volume as Volume
    from atoll import cached as cached
    from atoll import cloud as cloud
    from atoll import cloud as serverless
    from atoll import download as download
    from atoll import download_file as download_file
    from atoll import download_weights as download_weights
    from atoll import isolated as isolated
    from atoll import local as local
    from atoll import sync_dir as sync_dir
    from atoll.host.remote.older_names import CloudKeyCredentials as CloudKeyCredentials
    from atoll.host.remote.older_names import FalServerlessHost as FalServerlessHost
    from atoll.host.remote.older_names import FalServerlessKeyCredentials as FalServerlessKeyCredentials

_OLDER = ("CloudKeyCredentials", "FalServerlessHost", "FalServerlessKeyCredentials")

__all__ = [
    "CloudKeyCredentials",
    "FalServerlessHost",
    "FalServerlessKeyCredentials",
    "LocalHost",
    "Volume",
    "cached",
    "cloud",
    "download",
    "download_file",
    "download_weights",
    "isolated",
    "local",
    "serverless",
    "sync_dir",
]


if not TYPE_CHECKING:  # as in `atoll`

    def __getattr__(name: str) -> Any:
        if name in _OLDER:
            from atoll.host.remote import older_names

            return getattr(older_names, name)
        if name in __all__:
            import atoll

            return getattr(atoll, "cloud" if name == "serverless" else name)
        raise AttributeError(f"module `fal_serverless` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted(__all__)
