"""The options `cluster` of `settings.toml`: the machines of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClusterSettings:
    """Rules for the machines that a server has join it, over ssh or by Ray. Others join by themselves.

    Args:
        machines: their names for ssh, such as `user@gpu2` or `ssh://user@gpu2:2222`; a server starts those that are not
            linked when it begins.
        url: the address at which they reach the server; empty for the host name of its machine and its port.
        ca_file: certificates that they trust in place of their system's; a file of the server's machine, sent along.
        command: the program `atoll` there.
        home: the state directory there; empty as its ATOLL_HOME says.
        ssh: the program and arguments that come before the name of the machine; keys are those of the user who runs it.
        own_data: consent that machines which do not share `/data` run functions, too: a user's files there are others.
    """

    machines: tuple[str, ...] = ()
    url: str = ""
    ca_file: str = ""
    command: str = "atoll"
    home: str = ""
    ssh: tuple[str, ...] = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
    own_data: bool = False
