"""The daemon's view of `settings.toml`: a change takes effect while it runs, or as soon as nothing runs.

Options that decide at each use are taken over at once. Others shape the machine's share and its sandboxes when the
daemon starts; for them it leaves when nothing runs, and the next call starts one that has read them. A file with a
mistake changes nothing: the last good one counts on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from atoll import errors, file_stamp, settings
from atoll.settings import GROUPS, Settings

log = logging.getLogger("atoll.settings")

LIVE = ("records", "environments", "notifications", "secrets", "cluster")
"""Groups whose options are taken over at once, all of them."""
LIVE_OPTIONS = ("pool.daemon_idle_seconds",)
"""Such options of other groups."""


class SettingsWatch:
    """Follows one daemon's settings file.

    Args:
        options: the settings that the daemon has started with.
        apply: takes the settings with those changes that need no restart.
    """

    def __init__(self, options: Settings, apply: Callable[[Settings], None]) -> None:
        self._path = str(options.home / "settings.toml")
        self._current = options
        self._apply = apply
        self._stamp = file_stamp.take(self._path)
        self._read_at = time.time()
        self.error = ""
        """The message for a file with a mistake; empty while it is good."""
        self.pending: tuple[str, ...] = ()
        """Options that have changed, and take effect when the daemon starts again."""

    async def watch(self, look_seconds: Callable[[], float]) -> None:
        """Look from time to time; runs until cancelled."""
        while True:
            await asyncio.sleep(look_seconds())
            try:
                self.look()
            except Exception:  # the next look may succeed
                log.exception("settings_not_read")

    def look(self) -> None:
        """Take over what has changed in the file since the last look."""
        stamp = file_stamp.take(self._path)
        changed_at = stamp[1] / 1e9
        if stamp == self._stamp and self._read_at - changed_at > file_stamp.YOUNG_SECONDS:
            return
        again = stamp == self._stamp  # the file was young: a second change may have the same stamp
        self._stamp, self._read_at = stamp, time.time()
        try:
            wanted = settings.load(self._current.home)
        except errors.AtollError as error:
            if self.error != error.message:
                log.warning("settings_refused error=%s", error.message)
            self.error = error.message
            return
        if self.error or not again:
            log.info("settings_read")
        self.error = ""
        self._take_over(wanted)

    def _take_over(self, wanted: Settings) -> None:
        present = replace(self._current, **{name: getattr(wanted, name) for name in LIVE})
        for full in LIVE_OPTIONS:
            group, _, option = full.partition(".")
            value = getattr(getattr(wanted, group), option)
            present = replace(present, **{group: replace(getattr(present, group), **{option: value})})
        taken, pending = changes(self._current, present), changes(present, wanted)
        if taken or pending != self.pending:
            log.info("settings_changed taken=%s pending=%s", ",".join(taken), ",".join(pending))
        self.pending = pending
        if taken:
            self._current = present
            self._apply(present)

    def facts(self) -> dict[str, Any]:
        """Return `error` and `pending` as JSON-compatible data."""
        return {"error": self.error, "pending": list(self.pending)}


def changes(before: Settings, after: Settings) -> tuple[str, ...]:
    """Return the options, as `group.option`, that differ."""
    return tuple(
        f"{group}.{option.name}"
        for group, cls in GROUPS.items()
        for option in fields(cls)
        if getattr(getattr(before, group), option.name) != getattr(getattr(after, group), option.name)
    )
