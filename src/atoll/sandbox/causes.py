"""Causes for which a sandbox cannot be made, and their fixes.

Bubblewrap reports the step that the kernel refused; the machine's settings tell the reason. `explain` combines both.
Errors and `atoll doctor` share the wording of this module.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from atoll.errors import SandboxUnavailable

DOCKER_ROOT = (
    "start the container with `--cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt "
    "apparmor=unconfined` (or with `--privileged`)"
)
DOCKER_USER = (
    "start the container with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined` (or with `--privileged`)"
)
UBUNTU = (
    "run `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (and write it to "
    "`/etc/sysctl.d/60-atoll.conf` to keep it), or give bubblewrap a profile: `{profile}`"
)
PROFILE = (
    "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile atoll-bwrap {bwrap} flags=(unconfined) {{\\n"
    "  userns,\\n}}\\n' | sudo tee /etc/apparmor.d/atoll-bwrap && sudo apparmor_parser -r /etc/apparmor.d/atoll-bwrap"
)
DEBIAN = "run `sudo sysctl -w kernel.unprivileged_userns_clone=1`"
LIMIT = "run `sudo sysctl -w user.max_user_namespaces=28633`"

# The beginnings and words of bubblewrap's own messages (0.8 to 0.11).
_PATHS = ("Can't find source path", "Can't mkdir", "Can't create file", "Can't chdir", "Can't get type of source")
_NAMESPACES = ("namespace", "uid map", "gid map", "unshare", "Unexpected capabilities")
_MOUNTS = ("mount", "newroot", "pivot", "remount", "slave", "oldroot", "chdir")


@dataclass(frozen=True)
class Surroundings:
    """Settings of this machine that decide whether namespaces can be made."""

    apparmor_restricts: bool = False
    debian_forbids: bool = False
    no_user_namespaces: bool = False
    in_container: bool = False
    selinux: bool = False


def look() -> Surroundings:
    """Read the switches of this machine."""
    return Surroundings(
        apparmor_restricts=_value("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1",
        debian_forbids=_value("/proc/sys/kernel/unprivileged_userns_clone") == "0",
        no_user_namespaces=_value("/proc/sys/user/max_user_namespaces") == "0"
        or not os.path.exists("/proc/self/ns/user"),
        in_container=_in_container(),
        selinux=_value("/sys/fs/selinux/enforce") == "1",
    )


def explain(output: str, *, as_root: bool, around: Surroundings | None = None, bwrap: str = "") -> SandboxUnavailable:
    """Return the error for a sandbox that bubblewrap could not make.

    Args:
        output: bubblewrap's output.
        as_root: whether it ran as root.
        around: the machine's switches; read when it is None.
    """
    around = look() if around is None else around
    said = next((line for line in output.splitlines() if line.startswith("bwrap:")), "bwrap: no message")
    said = said.removeprefix("bwrap:").strip()
    if said.startswith("execvp"):
        return SandboxUnavailable(f"the sandbox's command cannot be started: {said}", hint="check that it is there")
    if said.startswith(_PATHS):
        return SandboxUnavailable(
            f"a path of the sandbox cannot be shown: {said}", hint="check that it exists, and who may read it"
        )
    if any(word in said for word in _NAMESPACES + _MOUNTS):
        mounts = not any(word in said for word in _NAMESPACES)
        cause, hint = _cause(around, as_root=as_root, mounts=mounts, bwrap=bwrap)
        return SandboxUnavailable(f"{cause} ({said})", hint=hint)
    return SandboxUnavailable(f"bubblewrap could not make a sandbox: {said}", hint="see `atoll doctor`")


def _cause(around: Surroundings, *, as_root: bool, mounts: bool, bwrap: str) -> tuple[str, str]:
    if as_root:
        if around.in_container:
            return "this container may not make namespaces and mounts", DOCKER_ROOT
        return "root may not make namespaces here", "give the process CAP_SYS_ADMIN, or run Atoll as a plain user"
    if around.no_user_namespaces:
        return "user namespaces are switched off", LIMIT
    if around.debian_forbids:
        return "this kernel keeps user namespaces from plain users", DEBIAN
    if around.apparmor_restricts:
        profile = PROFILE.format(bwrap=bwrap or "/usr/bin/bwrap")
        return "AppArmor keeps user namespaces from programs without a profile", UBUNTU.format(profile=profile)
    if around.in_container:
        return "this container may not make user namespaces", DOCKER_USER
    if around.selinux:
        return "SELinux may forbid it", "see `sudo ausearch -m avc -c bwrap`, and allow the operations that it lists"
    what = "mounts in a user namespace" if mounts else "user namespaces"
    return f"this machine does not allow {what}", "see `atoll doctor`"


def _in_container() -> bool:
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return True
    return "docker" in _value("/proc/1/cgroup") or "kubepods" in _value("/proc/1/cgroup")


def _value(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
