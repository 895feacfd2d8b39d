"""A `uv.lock` as lines of a requirements file, by uv itself; in the caller's process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from atoll import process, settings
from atoll.environments.build.python_downloads import uv_program
from atoll.errors import EnvironmentBuildError

EXPORT_SECONDS = 60.0


def export(directory: str, options: Sequence[str]) -> process.Completed:
    """Return uv's answer: the locked versions with their hashes, without the project itself.

    Args:
        directory: of the project.
        options: pairs of `--extra` or `--group` and a name; groups count only where they are named.

    Raises:
        EnvironmentBuildError: uv is not here.
    """
    try:
        program = uv_program()
    except (ImportError, OSError) as error:
        raise EnvironmentBuildError(
            f"the `uv.lock` in `{directory}` is read by `uv`, which is not here",
            hint="`uv export --format pylock.toml -o pylock.toml` makes a file that is read without it",
        ) from error
    command = [program, "export", "--frozen", "--offline", "--no-config", "--format", "requirements.txt", "--quiet"]
    command += ["--no-emit-project", "--no-default-groups", "--no-header", "--no-annotate"]
    command += ["--color", "never", "--no-python-downloads", "--project", directory, *options]
    environment = {"PATH": settings.search_path(), "HOME": os.path.expanduser("~")}
    return process.check(command, env=environment, timeout_seconds=EXPORT_SECONDS)
