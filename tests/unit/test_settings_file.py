"""`settings.toml`: what is useless or mistyped is refused with the option's name and with what would be right."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from atoll import settings
from atoll.daemon.settings_watch import SettingsWatch
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


@pytest.mark.parametrize(
    ("option", "value", "good"),
    [
        ("users_index_url", "https://lab.example/simple", True),
        ("users_index_url", "file:///srv/index/simple", True),
        ("users_index_url", "", True),
        ("users_extra_index_urls", ["http://lab.example:8080", "/srv/a b/simple"], True),
        ("users_index_url", "https://me:pw@lab.example/simple", False),
        ("users_index_url", "https://lab.example/simple?token=x", False),
        ("users_index_url", "https://a.example https://b.example", False),
        ("users_index_url", "ftp://lab.example", False),
        ("users_find_links", ["wheels"], False),
        ("users_find_links", ["/srv/wheels", "file://host/wheels"], False),
    ],
)
def test_places_of_packages_are_addresses_without_credentials(
    tmp_path: Path, option: str, value: str | list[str], good: bool
) -> None:
    """A server's users choose the code that some builds run, so credentials of the operator's are refused."""
    (tmp_path / "settings.toml").write_text(f"[environments]\n{option} = {json.dumps(value)}\n")
    if good:
        settings.load(tmp_path)
        return
    with pytest.raises(StateUnusable, match=f"`environments.{option}` must name packages by"):
        settings.load(tmp_path)


def test_zero_means_that_atoll_chooses(tmp_path: Path) -> None:
    """0 is taken where the reference says that it means the default, and small useful values are."""
    (tmp_path / "settings.toml").write_text("[pool]\nslots = 0\nworker_memory_bytes = 0\ndaemon_idle_seconds = 0.5\n")
    assert settings.load(tmp_path).pool.daemon_idle_seconds == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# a\n[pool]\nslots = 'x'\n", ", line 3: `pool.slots`"),
        ("[pool]\n[sandbox]\nslots = 1\n", ", line 3 has an unknown option `sandbox.slots`"),
        ("pool.slots = -1\n", ", line 1: `pool.slots`"),
        ("pool = {slots = -1}\n", ": `pool.slots`"),
        ("\n[ 'pool' ]  # here\n'slots' = -1\n", ", line 3: `pool.slots`"),
        ("\n[pols]\n", ", line 2 has an unknown group `pols`"),
        ("\npols.slots = 1\n", ", line 2 has an unknown group `pols`"),
        ("pool = 3\n", ", line 1: `pool` must be a table"),
        ("[pool]\nslots = \n", "line 2, column 9"),
        ("[notifications]\ncommand = 'curl'\n", ", line 2: `notifications.command` must be a list of texts"),
        ("[notifications]\ncommand = ['curl', 3]\n", "must be a list of texts"),
        ("a = " + "[" * 30_000, "is not TOML"),
        ("[pool]\nslots = " + "9" * 5_000, "is not TOML"),
        ("[pool]\nslots = 0x" + "9" * 5_000, ", line 2: `pool.slots` must be a whole number of at least 0, is `…`"),
        ('[pool]\nslots = "' + "\\u202e" * 500 + '"', r"is `\u202e"),
        ("#" * 65_537, "has more than 65,536 bytes"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    """Each mistake names the line that holds it, as far as one plainly does."""
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(StateUnusable) as caught:
        settings.load(tmp_path)
    assert words in caught.value.message
    assert len(caught.value.message) < 1000
    assert caught.value.message.isprintable()
    found = settings.usable(tmp_path)
    assert replace(found, mistake="") == settings.Settings(tmp_path)
    assert found.mistake.startswith(caught.value.message)


def test_settings_reach_another_process_whole(tmp_path: Path) -> None:
    """The keeper has the daemon's settings, whatever the file holds by then."""
    told = settings.NotificationsSettings(("notify", "x"), seconds=3)
    options = settings.Settings(tmp_path, pool=settings.PoolSettings(slots=3), notifications=told)
    assert settings.from_data(tmp_path, json.loads(json.dumps(settings.to_data(options)))) == options


def test_the_watch_outlives_a_look_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw, in one look at the file, is logged; later looks see what changes."""
    watch, looks = SettingsWatch(settings.load(tmp_path), lambda _: None), list[str]()

    def look() -> None:
        looks.append("")
        if len(looks) == 3:
            raise asyncio.CancelledError
        raise RecursionError

    monkeypatch.setattr(watch, "look", look)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch.watch(lambda: 0.0))
    assert len(looks) == 3


def test_a_list_is_kept_as_it_cannot_change(tmp_path: Path) -> None:
    """A list of texts becomes a tuple; hints for a near name lead to it."""
    (tmp_path / "settings.toml").write_text('[notifications]\ncommand = ["curl", "-d", "@-"]\n')
    assert settings.load(tmp_path).notifications.command == ("curl", "-d", "@-")
    (tmp_path / "settings.toml").write_text("[pool]\nmax_worker = 1\n")
    with pytest.raises(StateUnusable, match="did you mean `max_workers`"):
        settings.load(tmp_path)


def test_a_daemon_takes_over_changes_and_keeps_the_last_good(tmp_path: Path) -> None:
    """Live options count at once, others wait and are named; a file with a mistake changes nothing until it is mended."""
    file, applied = tmp_path / "settings.toml", list[settings.Settings]()
    watch = SettingsWatch(settings.load(tmp_path), applied.append)
    watch.look()
    assert applied == []
    file.write_text("[records]\nkeep_days = 3\n[pool]\nslots = 3\ndaemon_idle_seconds = 7\n")
    watch.look()
    assert applied[-1].records.keep_days == 3
    assert applied[-1].pool == settings.PoolSettings(daemon_idle_seconds=7)
    assert watch.facts() == {"error": "", "pending": ["pool.slots"]}
    file.write_text("[records]\nkeep_days = 'three'\n")
    watch.look()
    assert "line 2: `records.keep_days` must be a number" in watch.error
    assert (len(applied), watch.pending) == (1, ("pool.slots",))
    file.write_text("[records]\nkeep_days = 4\n[environments]\nbuild_seconds = 9\n")
    watch.look()
    assert watch.facts() == {"error": "", "pending": []}
    assert (applied[-1].records.keep_days, applied[-1].environments.build_seconds) == (4, 9)
    assert applied[-1].pool.daemon_idle_seconds == settings.PoolSettings().daemon_idle_seconds
    file.unlink()
    watch.look()
    assert applied[-1].records == settings.RecordsSettings()
