"""The live view of `atoll top`: a table, and screens for the output and the stacks of a call, in Textual.

Everything that it asks takes place in threads: the view never waits. Texts of functions are `rich.Text`, escaped: no
markup in them counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, RichLog, Static

from atoll import errors
from atoll.cli.calls import rows
from atoll.cli.calls.machine_use import Snapshot, calls_of, heading
from atoll.terminal_text import harmless, lines, printable

LOOK_SECONDS = 1.0
FOLLOW_SECONDS = 0.3
RECORD_LOOKS = 20
"""Looks for the record of a call that has ended."""

SHOWN = ("id", "function", "state", "time", "memory", "cpu", "detail")
STYLES = {"running": "green", "building": "yellow", "waiting": "yellow"}


class Asked(Protocol):
    """The daemon; see `top.Source`."""

    def look(self) -> Snapshot: ...

    async def gpus(self) -> list[str]: ...

    def cancel(self, call: str) -> str: ...

    def stacks(self, call: str) -> list[str]: ...

    def output(self, call: str, seen: int) -> dict[str, Any]: ...


class TopView(App[int]):
    """The table of calls.

    Args:
        source: is asked for everything.
    """

    TITLE = "atoll top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #heading { height: auto; padding: 0 1; }
    #said { height: auto; padding: 0 1; color: $text-muted; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l,enter", "follow", "Output", priority=True),
        Binding("s", "stacks", "Stacks"),
        Binding("c", "cancel", "Cancel"),
        Binding("q", "leave", "Quit"),
        Binding("ctrl+c", "interrupt", show=False, priority=True),
    ]

    def __init__(self, source: Asked) -> None:
        super().__init__()
        self._source = source
        self._before: Snapshot | None = None
        self._looking = False

    def compose(self) -> ComposeResult:
        yield Static(id="heading", markup=False)
        yield DataTable[Text](id="calls", cursor_type="row")
        yield Static(id="said", markup=False)
        yield Footer()

    async def on_mount(self) -> None:
        """Begin to look."""
        table = self._table
        for name in SHOWN:
            table.add_column(name, key=name)
        self.set_interval(LOOK_SECONDS, self.look)
        await self.look()

    @property
    def _table(self) -> DataTable[Text]:
        return self.screen_stack[0].query_one("#calls", DataTable)

    async def look(self) -> None:
        """Ask, and show the answer."""
        if self._looking:
            return
        self._looking = True
        try:
            snapshot = await asyncio.to_thread(self._source.look)
            gpus = await self._source.gpus()
        except errors.AtollError as error:
            self._say(str(error))
            return
        finally:
            self._looking = False
        first = self.screen_stack[0]
        none = [] if snapshot.status is None or calls_of(snapshot) else ["no call runs or waits"]
        above = [*heading(snapshot, self._before), *gpus, *none]
        first.query_one("#heading", Static).update(Text("\n".join(map(printable, above))))
        self._before = snapshot
        self._show(calls_of(snapshot), snapshot.at)

    def _show(self, calls: list[dict[str, Any]], now: float) -> None:
        """Bring the table up to date; the row that was chosen stays so."""
        table, chosen, place = self._table, self.chosen, self._table.cursor_row
        names = [column.name for column in rows.COLUMNS]
        table.clear()
        keys = []
        for call, cells in zip(calls, rows.cells(calls, now), strict=True):
            shown = dict(zip(names, map(printable, cells), strict=True))
            style = STYLES.get(call["state"], "")
            key = call["call"]
            if key and key not in keys:
                keys.append(key)
                table.add_row(*(Text(shown[name], style=style if name == "state" else "") for name in SHOWN), key=key)
        if keys:
            table.move_cursor(row=keys.index(chosen) if chosen in keys else min(place, len(keys) - 1), scroll=False)

    @property
    def chosen(self) -> str:
        """The id of the call under the cursor; empty where there is none."""
        table = self._table
        if not table.row_count:
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    def _say(self, text: str) -> None:
        self.screen_stack[0].query_one("#said", Static).update(Text(lines(text)))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's name
        """Return whether a key of the table counts: not while another screen is above it."""
        return len(self.screen_stack) == 1 or action not in {"follow", "stacks", "cancel", "leave"}

    def action_leave(self) -> None:
        """End."""
        self.exit(0)

    def action_interrupt(self) -> None:
        """End as a program does that is interrupted, on every screen."""
        self.exit(130)

    def action_follow(self) -> None:
        """Follow the output of the chosen call."""
        if self.chosen:
            self.push_screen(Output(self._source, self.chosen))

    def action_stacks(self) -> None:
        """Show the stacks of the chosen call."""
        if self.chosen:
            self.push_screen(Stacks(self._source, self.chosen))

    def action_cancel(self) -> None:
        """Cancel the chosen call, after a question."""
        if call := self.chosen:
            self.push_screen(Question(f"Cancel call {call[: rows.SHORT_ID]}?"), self._answered(call))

    def _answered(self, call: str) -> Callable[[bool | None], None]:
        def take(yes: bool | None) -> None:
            if yes:
                self.run_worker(self._cancel(call))

        return take

    async def _cancel(self, call: str) -> None:
        try:
            self._say(await asyncio.to_thread(self._source.cancel, call))
        except errors.AtollError as error:
            self._say(str(error))
        await self.look()


class Question(ModalScreen[bool]):
    """A question with yes or no."""

    CSS = """
    Question { align: center middle; }
    #question { width: auto; height: auto; padding: 1 3; border: round $warning; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(f"{self._text}  y / n"), id="question", markup=False)

    def action_answer(self, yes: bool) -> None:
        """Take the answer."""
        self.dismiss(yes)


class Stacks(Screen[None]):
    """The stacks of one call."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", "Back"),
        Binding("r", "again", "Again"),
    ]

    def __init__(self, source: Asked, call: str) -> None:
        super().__init__()
        self._source = source
        self._call = call

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="stacks", markup=False)
        yield Footer()

    async def on_mount(self) -> None:
        """Ask at once."""
        await self.action_again()

    async def action_again(self) -> None:
        """Ask again."""
        try:
            shown = await asyncio.to_thread(self._source.stacks, self._call)
        except errors.AtollError as error:
            shown = str(error).split("\n")
        self.query_one("#stacks", Static).update(Text("\n".join(map(printable, shown))))

    def action_back(self) -> None:
        """Return to the table."""
        self.dismiss()


class Output(Screen[None]):
    """The output of one call, as it comes."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "back", "Back")]

    def __init__(self, source: Asked, call: str) -> None:
        super().__init__()
        self._source = source
        self._call = call
        self._seen = 0
        self._rest = ""

    def compose(self) -> ComposeResult:
        yield Static(Text(f"output of {self._call}"), id="title", markup=False)
        yield RichLog(id="output", wrap=True, markup=False, highlight=False, max_lines=10_000)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to follow."""
        self.run_worker(self._follow())

    async def _follow(self) -> None:
        looks = RECORD_LOOKS
        while True:
            try:
                found = await asyncio.to_thread(self._source.output, self._call, self._seen)
            except errors.AtollError as error:
                looks -= 1
                if looks <= 0:
                    self._write(f"{error}\n")
                    return
                await asyncio.sleep(FOLLOW_SECONDS)
                continue
            for row in found.get("unfinished", ()):
                self._write(row["output"])
                self._seen = max(row["printed_bytes"], self._seen)
            if found["calls"]:
                self._end(found["calls"][-1])
                return
            await asyncio.sleep(FOLLOW_SECONDS)

    def _write(self, text: str) -> None:
        """Show whole lines; of a progress bar's overwritten line its last state."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self.query_one("#output", RichLog).write(Text.from_ansi(harmless(line.rstrip("\r").rpartition("\r")[2])))

    def _end(self, record: dict[str, Any]) -> None:
        rest = record["output"].encode("utf-8", "surrogatepass")
        missing = min(max(record["printed_bytes"] - self._seen, 0), len(rest))
        self._write(rest[len(rest) - missing :].decode("utf-8", "replace"))
        if self._rest:
            self._write("\n")
        error = f": {record['error']}" if record["error"] else ""
        self._write(f"-- {record['outcome']}{error} after {rows.duration(record['wall_seconds'])}\n")

    def action_back(self) -> None:
        """Return to the table."""
        self.dismiss()
