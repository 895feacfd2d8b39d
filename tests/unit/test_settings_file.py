"""`settings.toml`: what is useless or mistyped is refused with the option's name and with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll import settings
from atoll.errors import StateUnusable


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pool]\nworker_memory_bytes = 1000\n", "`pool.worker_memory_bytes` must be a whole number of at least 33,554,432"),
        ("[pool]\nslots = 1.5\n", "`pool.slots` must be a whole number of at least 0"),
        ("[pool]\nslots = true\n", "`pool.slots` must be a whole number"),
        ("[pool]\nslots = -1\n", "`pool.slots` must be a whole number of at least 0, is `-1`"),
        ("[pool]\nslots = 99999999999999999999\n", "`pool.slots` must be a whole number"),
        ("[pool]\ndaemon_idle_seconds = 'soon'\n", "`pool.daemon_idle_seconds` must be a number of at least 0"),
        ("[pool]\ndaemon_idle_seconds = nan\n", "`pool.daemon_idle_seconds` must be a number"),
        ("[pool]\ndaemon_idle_seconds = true\n", "`pool.daemon_idle_seconds` must be a number"),
        ("[pool]\nworker_processes = 1\n", "`pool.worker_processes` must be a whole number of at least 16"),
        ("[pool]\nworker_processes = 0\n", "`pool.worker_processes` must be a whole number of at least 16, is `0`"),
        ("[pool]\ngpus = 1\n", "`pool.gpus` must be a text"),
        ("[sandbox]\ntmp_bytes = 0\n", "`sandbox.tmp_bytes` must be a whole number of at least 1,048,576, is `0`"),
    ],
)  # fmt: skip
def test_a_useless_value_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """A value that no function could run with is refused, and the message says what is right."""
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(StateUnusable, match="hint: ") as caught:
        settings.load(tmp_path)
    assert words in caught.value.message


def test_zero_means_that_atoll_chooses(tmp_path: Path) -> None:
    """0 is taken where the reference says that it means the default, and small useful values are."""
    (tmp_path / "settings.toml").write_text("[pool]\nslots = 0\nworker_memory_bytes = 0\ndaemon_idle_seconds = 0.5\n")
    assert settings.load(tmp_path).pool.daemon_idle_seconds == 0.5
