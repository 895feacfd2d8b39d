"""The display of a request that may build an environment, without a call: `atoll env build`."""

from __future__ import annotations

from typing import Self

from atoll.model.build_progress import shown
from atoll.sdk.display.output import CallerStreams


class BuildDisplay:
    """The display of a request that may build: `host.request(..., on_progress=display)`, and `close` at its end."""

    def __init__(self) -> None:
        self._streams = CallerStreams()

    def __call__(self, line: str) -> None:
        self._streams.progress(line)
        self._streams.waits("building", shown(line))

    def close(self) -> None:
        """Remove the live line."""
        self._streams.proceeds()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
