"""Entry point of `atoll` (and of `fal-serverless`, the same program) with its command table.

Exit status 0 for success, 1 for failure, 2 for wrong usage, 130 for Ctrl-C. Everything slow is imported in `run`,
where Ctrl-C ends it quietly; the module itself imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import cyclopts

_COMMANDS = (
    ("init", "init:init", "Write a first program, ready to run."),
    ("run", "programs.run:run", "Run one function of a file in its environment."),
    ("attach", "detached:attach", "Follow a detached call to its result."),
    ("shell", "programs.shell:shell", "Open a shell in a function's environment and sandbox."),
    ("data", "data.commands:app", "Look at the volume, copy to and from it, mirror a directory."),
    ("env", "env:app", "List, build, lock, upgrade and prune environments."),
    ("admin", "admin.commands:app", "Administer a server: backups, the key of secrets, the audit, machine time."),
    ("secrets", "secrets:app", "Set, list and delete secrets, variables of your calls."),
    ("status", "status:status", "Show the daemon, what is free, the calls that run, and the sandboxes."),
    ("stop", "daemon:stop", "Stop the daemon and all that it runs."),
    ("calls", "calls.commands:app", "List calls that run, wait or are over, and show one of them."),
    ("cancel", "calls.cancel:cancel", "Cancel calls that wait or run."),
    ("exec", "calls.exec:exec_", "Open a shell, or run a command, in the sandbox of a running call."),
    ("top", "calls.top:top", "Watch the calls that run or wait, and the machine."),
    ("stack", "calls.stack:stack", "Show the Python stacks of a running call."),
    ("logs", "daemon:logs", "Print the daemon's log, or a call's output."),
    (
        "function",
        "functions.commands:app",
        "Serve functions over HTTP from a server, or have it call them by the clock.",
    ),
    ("alias", "functions.aliases:app", "List and point the names of endpoints."),
    ("usage", "usage.command:usage", "Show calls, time, memory, GPUs and the disk, by function or day."),
    ("version", "version:version", "Show the versions of Atoll and of the programs that it runs."),
    ("completion", "completion.scripts:completion", "Print a script that completes commands in bash, zsh or fish."),
    ("auth", "accounts.auth:app", "Log in to a server, see as whom you are, log out."),
    ("key", "accounts.keys:app", "Make, list and revoke keys of a server."),
    ("users", "accounts.users:app", "Add, list and remove users of a server."),
    ("deploy", "functions.deploy:deploy", "Deploy all isolated functions of a file at a server."),
    ("apps", "functions.apps:app", "List, scale, roll back and delete what was deployed."),
    ("queue", "functions.queue:app", "See requests and calls that wait at a server, and cancel them."),
    ("crons", "functions.crons:app", "List, pause and cancel schedules; show their activations and output."),
    ("server", "server.command:server", "Serve functions and `/data` of many users over HTTP."),
    ("nodes", "nodes.commands:app", "List, drain and remove the machines of a server; make tokens for new ones."),
    ("node", "nodes.node:app", "Join this machine to a server, and run it as a node of that one."),
    ("doctor", "doctor:doctor", "Try the abilities of this machine, with a fix for each missing one."),
)

_OLDER = {"fn": "function", "cron": "crons", "aliases": "alias", "keys": "key", "secret": "secrets"}
"""Further names of commands, which the program of 2023 had."""
_OF_SCHEDULES = ("list", "cancel", "activations", "logs")
"""Commands of `crons` that it had below `function schedule` for some days."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments (default: the process's) name, and exit with its status."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["__complete"]:  # a shell waits at each press of a key: the rest is slow to import
            from atoll.cli.completion_values import main as complete

            sys.exit(complete(given[1:]))
        status = run(given)
    except KeyboardInterrupt:
        status = _interrupted()
    sys.exit(status)


def _interrupted() -> int:
    """Print the one line of Ctrl-C, and return its exit status; a second one ends the program at once, silently."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if getattr(sys.modules.get("atoll.sdk.display.call_lines"), "told_interrupt", False):
        return 130  # the line of the call says so
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it
        is_terminal = sys.stderr.isatty()  # the line goes below the `^C` that a terminal shows
        sys.stderr.write("\ninterrupted\n" if is_terminal else "interrupted\n")
        sys.stderr.flush()
    return 130


def _displayed(arguments: list[str]) -> list[str]:
    """Choose the display by `-q` and `-v` around the command's name, and return the other arguments."""
    rest, position = list(arguments), 0
    while position < min(2, len(rest)):
        if rest[position] in ("-q", "--quiet", "-v", "--verbose"):
            from atoll.sdk.display import mode

            quiet = rest.pop(position) in ("-q", "--quiet")
            mode.choose("none" if quiet else "", more=not quiet)
        elif rest[position].startswith("-"):
            break
        else:
            position += 1
    return rest


def _named(arguments: list[str]) -> list[str]:
    """Return the arguments with today's name of the command."""
    named = [*(_OLDER.get(name, name) for name in arguments[:1]), *arguments[1:]]
    if named[:2] == ["function", "schedule"] and named[2:3] and named[2] in _OF_SCHEDULES:
        return ["crons", *named[2:]]
    return named


def _arranged(arguments: list[str]) -> list[str]:
    """Return the arguments with a mark before those of a function, a command, or names of files."""
    if arguments[:1] == ["run"]:
        target = 1
        while arguments[target : target + 1] in (["-m"], ["--module"], ["--detach"]):
            target += 1
        if len(arguments) > target and not arguments[target].startswith("-"):
            # the rest are the function's arguments, `--help` too
            return [*arguments[: target + 1], "--", *arguments[target + 1 :]]
    if arguments[:1] == ["exec"] and arguments[2:3] not in ([], ["--"]) and not arguments[1].startswith("-"):
        return [*arguments[:2], "--", *arguments[2:]]  # the rest is the command
    if arguments[:1] == ["data"] and "--" in arguments:
        end = arguments.index("--") + 1  # the rest are names, even those that begin like options
        names = (f"./{name}" if name.startswith("-") and name != "-" else name for name in arguments[end:])
        return [*arguments[:end], *names]
    return arguments


def command_table() -> cyclopts.App:
    """Return all commands; the reference in the docs is made from it too."""
    import cyclopts

    from atoll import __version__

    app = cyclopts.App(
        name="atoll",
        help="Run Python functions serverless on machines that you own.\n\nBefore or after the command's name, `-q` "
        "leaves out all lines about calls, and `-v` adds more of them.\n\nCommands about calls, environments and `/data` "
        "ask the server that you are logged in to, else this machine; with `--host URL` or `--host local` the one that "
        "you name.",
        version=__version__,
        result_action="return_value",
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for name, where, summary in _COMMANDS:
        app.command(f"atoll.cli.{where}", name=name, help=summary)
    return app


def run(arguments: list[str]) -> int:
    """Run a command and return its exit status; errors are printed to stderr."""
    import cyclopts

    from atoll import errors
    from atoll.cli.hosts import take_option
    from atoll.cli.programs.program import TargetError
    from atoll.cli.settings_state import tell_mistake, told
    from atoll.cli.terminal import echo_lines

    app = command_table()
    if sys.stdout is None:  # closed by the parent process: output is discarded
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    try:
        result = app(_arranged(take_option(_named(_displayed(arguments)))), exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        from atoll.cli.usage_errors import text_of  # for a mistake only

        echo_lines(f"error: {text_of(error, [name for name, *_ in _COMMANDS])}", error=True)
        return 2
    except TargetError as error:
        echo_lines(f"error: {error}", error=True)
        return 2
    except errors.AtollError as error:
        told(error.message)
        echo_lines(f"error: {error}", error=True)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone: nothing is left to flush
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1 if error.code else 0
    except (OSError, ValueError, TypeError) as error:
        echo_lines(f"error: {error}", error=True)
        return 1
    finally:
        tell_mistake()
    return result if isinstance(result, int) and not isinstance(result, bool) else 0
