"""The streams of one call of a `map`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from atoll.sdk.display import parallel
from atoll.sdk.display.output import CallerStreams

if TYPE_CHECKING:
    from atoll.sdk.display.map_bar import MapBar

BAR_MILLISECONDS = 500
"""The longest time until a thread that waits for a call looks at the bar."""


class MapStreams(CallerStreams):
    """The streams of one call of a `map`, whose bar stands for the running calls."""

    def __init__(self, call: str, name: str, bar: MapBar | None, busy: Callable[[], int]) -> None:
        super().__init__(call, name)
        self.rests()  # it may have been made ahead
        self._bar = bar
        self._busy = busy

    def beside_others(self) -> bool:
        """See `CallerStreams.beside_others`."""
        return self._busy() > 1 or bool(parallel.active)

    def waits(self, kind: str, detail: str) -> int | None:
        """See `CallerStreams.waits`."""
        if kind != "running":
            return super().waits(kind, detail)
        if self._bar is None:
            return None
        self._bar.tick()
        return BAR_MILLISECONDS
