"""Patience with a server that restarts: the words of an outage."""

from __future__ import annotations

import pytest

from atoll.host.remote import patience
from atoll.host.remote.patience import Attempts, Outage


def test_an_outage_has_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many that wait one speaks; an attempt that fails after another one's success speaks of no new outage."""
    monkeypatch.setattr(patience, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.0)
    outage = Outage("`lab`")
    first, second = Attempts(outage, 60.0), Attempts(outage, 60.0)
    assert first.wait("is away")
    assert second.wait("is away")
    assert capsys.readouterr().err == "atoll: `lab` is away: trying for up to 60 s\n"
    outage.ends()
    assert second.wait("is away")
    assert second.wait("is away")
    assert capsys.readouterr().err == ""  # a server that has just started may fail once more
    outage.ends()
    assert second.wait("is away")
    assert second.wait("is away")
    assert capsys.readouterr().err.count("\n") == 1
