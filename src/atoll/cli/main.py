"""`atoll`, and `fal-serverless`: the same program. Exit status 0 for success, 1 for failure, 2 for wrong usage."""

from __future__ import annotations

import os
import sys

import cyclopts

from atoll import __version__, errors

app = cyclopts.App(
    name="atoll",
    help="Run Python functions serverless on machines that you own.",
    version=__version__,
    result_action="return_value",
    help_format="plaintext",
)
app.command("atoll.cli.run:run", name="run")
app.command("atoll.cli.shell:shell", name="shell")
app.command("atoll.cli.data:app", name="data")
app.command("atoll.cli.env:app", name="env")
app.command("atoll.cli.daemon:status", name="status")
app.command("atoll.cli.daemon:stop", name="stop")
app.command("atoll.cli.daemon:logs", name="logs")
app.command("atoll.cli.doctor:doctor", name="doctor")


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments (default: the process's) name, and exit with its status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command; return its exit status. What goes wrong is printed to stderr."""
    try:
        result = app(arguments, exit_on_error=False, print_error=True)
        sys.stdout.flush()
    except cyclopts.CycloptsError:
        return 2
    except errors.AtollError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # who read the output has left: nothing is to be flushed
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1 if error.code else 0
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return result if isinstance(result, int) and not isinstance(result, bool) else 0
