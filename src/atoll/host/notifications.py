"""Notifications that a call is over: through the desktop, or by a command of `settings.toml`.

The command is the owner's own and runs without a shell, for a bounded time. It reads one JSON object. Texts in it, and
in its variables, come from functions: a command must not take them for options or code.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

from atoll import settings
from atoll.process import feed
from atoll.settings import NotificationsSettings
from atoll.terminal_text import cell

MOST_TEXT = 1000
NOTIFY = "notify"
"""The value of the option `on_done` that asks for a notification."""


@dataclass(frozen=True)
class Ended:
    """A call, or a batch, that is over.

    Args:
        call, function, outcome: as in `model.records.CallRecord`.
        message: the error in words; empty for none.
        seconds: from the making of the call to its end.
        detached: no program waits for it.
        batch: the id of the batch, whose last call it was; empty for a call that is in none.
    """

    call: str
    function: str
    outcome: str
    message: str = ""
    seconds: float = 0.0
    detached: bool = False
    batch: str = ""

    @property
    def title(self) -> str:
        """One line for people."""
        done = "is done" if self.outcome == "ok" else f"ended: {self.outcome}"
        return f"{cell(self.function)} {done}"

    @property
    def text(self) -> str:
        """A second line for people."""
        seconds = round(self.seconds)
        took = f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
        about = f"{took}, {'batch' if self.batch else 'call'} {cell(self.batch or self.call)}"
        about = about if self.batch or self.call else took
        return f"{about}\n{cell(self.message, 200)}" if self.message else about


def tell(options: NotificationsSettings, ended: Ended) -> str:
    """Tell the owner that a call is over; return the reason in one line where that fails, else an empty text.

    It takes at most `options.seconds`, and a little more.
    """
    command = list(options.command) or _desktop(ended)
    if not command:
        return "there is no `notify-send` here: set `notifications.command` in `settings.toml`"
    facts = asdict(ended) | {"message": ended.message[:MOST_TEXT], "function": ended.function[:MOST_TEXT]}
    facts |= {"title": ended.title, "text": ended.text}
    facts = {name: _clean(value) if isinstance(value, str) else value for name, value in facts.items()}
    variables = {f"ATOLL_CALL_{name.upper()}": _variable(value) for name, value in facts.items()}
    seconds = options.seconds or 1e6
    try:
        done = feed(
            command, json.dumps(facts).encode(), env=settings.environment_with(variables), timeout_seconds=seconds
        )
    except subprocess.TimeoutExpired:
        return f"`{cell(command[0])}` took longer than {seconds:g} s"
    except OSError as error:
        return f"`{cell(command[0])}` cannot be run: {error.strerror or error}"
    if done.status:
        words = done.output.strip().partition("\n")[0]
        return f"`{cell(command[0])}` exits with {done.status}" + (f": {cell(words, 200)}" if words else "")
    return ""


def _desktop(ended: Ended) -> list[str]:
    """Return the command that shows a notification on this machine's desktop; empty where there is none."""
    if sys.platform == "darwin":
        script = ("on run argv", "display notification (item 2 of argv) with title (item 1 of argv)", "end run")
        return ["osascript", *(part for line in script for part in ("-e", line)), "--", ended.title, ended.text]
    program = shutil.which("notify-send", path=settings.search_path())
    if program is None:
        return []
    plain = ended.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")  # a body may have markup
    urgency = "normal" if ended.outcome == "ok" else "critical"
    return [program, f"--urgency={urgency}", "--app-name=atoll", "--", ended.title, plain]


def _clean(text: str) -> str:
    """Return a text without lone surrogates, which neither a variable nor every reader of JSON takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _variable(value: object) -> str:
    return str(value).replace("\0", "") if not isinstance(value, bool) else str(int(value))
