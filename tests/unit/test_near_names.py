"""Hints for names that do not exist: of options, of commands, of a command's options."""

from __future__ import annotations

import pytest

from atoll import isolated
from atoll.cli import main
from atoll.near_names import distance, nearest

OPTIONS = ("timeout", "requirements", "keep_alive", "max_concurrency", "python_version", "machine_type", "env")


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("requirments", "requirements"),
        ("keepalive", "keep_alive"),
        ("keep-alive", "keep_alive"),
        ("tiemout", "timeout"),
        ("concurrency", "max_concurrency"),
        ("python", "python_version"),
        ("machine", "machine_type"),
        ("nev", "env"),
        ("image", ""),
        ("x", ""),
        ("", ""),
        ("entropy", ""),
        ("a" * 10_000, ""),
    ],
)
def test_near_is_a_slip_or_a_beginning(asked: str, near: str) -> None:
    """A name is near by slips of the fingers, as a beginning or as a word; similar letters alone are no reason."""
    assert nearest(asked, OPTIONS) == near


def test_three_letters_have_no_slip() -> None:
    """`top` is not `stop`; neighbours that are swapped are a slip at any length."""
    assert nearest("top", ["stop"]) == ""
    assert nearest("rnu", ["stop", "run"]) == "run"
    assert [distance(one, other) for one, other in (("ab", "ba"), ("abc", "ac"), ("", "ab"))] == [1, 1, 2]


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("image", "functions run in no image"),
        ("docker_image", "functions run in no image"),
        ("pip_install", "did you mean `requirements`"),
        ("gpus", "did you mean `"),
        ("mem", "did you mean `"),
        ("cpus", "did you mean `"),
        ("secret", "did you mean `secrets`"),
        ("max_retries", "did you mean `retries`"),
        ("volume", "did you mean `mounts`"),
        ("zzz", "the options are kind, "),
    ],
)
def test_an_unknown_option_of_isolated_has_a_true_hint(option: str, hint: str) -> None:
    """Names of other tools lead to the option that does it here, or to the other way; never to a similar word."""
    with pytest.raises(TypeError, match=f"`{option}`") as caught:
        isolated(**{option: 1})(len)  # type: ignore[call-overload, unused-ignore]
    assert hint in str(caught.value)
    assert "timeout" not in str(caught.value) or "the options are" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["stpo"], "there is no command `stpo`", "did you mean `atoll stop`?"),
        (["ps"], "there is no command `ps`", "did you mean `atoll calls list`?"),
        (["imaeg"], "there is no command `imaeg`", "see `atoll --help`"),
        (["env", "lsit"], "there is no command `env lsit`", "did you mean `atoll env list`?"),
        (["data", "remove"], "there is no command `data remove`", "did you mean `atoll data rm`?"),
        (["env", "prune", "--unused-day", "3"], "unknown option `--unused-day`", "did you mean `--unused-days`?"),
        (["env", "prune", "--old=3"], "unknown option `--old`", "see `atoll env prune --help`"),
        (["logs", "-n", "x"], "invalid value", "see `atoll logs --help`"),
    ],
)
def test_wrong_usage_is_an_error_with_a_hint(
    arguments: list[str], error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown command or option has status 2 and two lines: the error, and the one that is likely meant or the help."""
    assert main.run(arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert error.lower() in first.lower()
    assert second == f"hint: {hint}"
