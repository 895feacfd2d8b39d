"""The same objects as `atoll`, under the import that existing programs use."""

from __future__ import annotations

TYPE_CHECKING = False  # of `typing`, which is not imported here: a module of the project may have its name

if TYPE_CHECKING:
    from typing import Any

    from atoll import LocalHost as LocalHost
    from atoll import Volume as Volume
    from atoll import cached as cached
    from atoll import download as download
    from atoll import download_file as download_file
    from atoll import download_weights as download_weights
    from atoll import isolated as isolated
    from atoll import local as local
    from atoll import sync_dir as sync_dir

_LATER = (
    "CloudKeyCredentials",
    "FalServerlessHost",
    "FalServerlessKeyCredentials",
    "cloud",
    "serverless",
)

__all__ = [
    "LocalHost",
    "Volume",
    "cached",
    "download",
    "download_file",
    "download_weights",
    "isolated",
    "local",
    "sync_dir",
]


if not TYPE_CHECKING:  # as in `atoll`

    def __getattr__(name: str) -> Any:
        if name in __all__:
            import atoll

            return getattr(atoll, name)
        if name in _LATER:
            raise ImportError(f"`{name}` is not in this version of Atoll yet")
        raise AttributeError(f"module `fal_serverless` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted(__all__)
