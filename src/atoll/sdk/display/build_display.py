"""The display of a request that may build an environment, without a call: `atoll env build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.model.build_progress import BuildLine, shown
from atoll.sdk.display import build_lines, mode
from atoll.sdk.display.output import CallerStreams
from atoll.terminal_text import printable

if TYPE_CHECKING:
    from typing import Self  # functions may run on Python 3.10


class BuildDisplay:
    """The display of a request that may build: `host.request(..., on_progress=display)`, and `close` at its end."""

    def __init__(self, prefix: str = "") -> None:
        self._streams = CallerStreams()
        self._prefix = prefix

    def __call__(self, line: str) -> None:
        shown_as = mode.current()
        if shown_as == mode.LIVE and not isinstance(line, BuildLine):  # a notice, of no build
            self._streams.tell(f"{self._prefix}{printable(line)}")
        elif shown_as != mode.NONE:
            build_lines.tell(self._streams.tell, line, shown_as, self._prefix)
        if step := shown(line):
            self._streams.waits("building", step)
        else:
            self.close()

    def close(self) -> None:
        """Remove the live line."""
        self._streams.proceeds()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
