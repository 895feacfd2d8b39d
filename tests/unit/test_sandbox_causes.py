"""What is said when no sandbox can be made: bubblewrap's own words and the machine's switches in, advice out."""

from __future__ import annotations

import pytest

from atoll.sandbox.causes import Surroundings, explain

NAMESPACE = "bwrap: No permissions to creating new namespace, likely because the kernel does not allow ..."
MAP = "bwrap: setting up uid map: Permission denied"
PROC = "bwrap: Can't mount proc on /newroot/proc: Operation not permitted"


@pytest.mark.parametrize(
    ("what", "output", "as_root", "around", "message", "hint"),
    [
        ("Ubuntu", MAP, False, Surroundings(apparmor_restricts=True), "AppArmor", "apparmor_restrict_unprivileged_userns=0"),
        ("Ubuntu, by profile", MAP, False, Surroundings(apparmor_restricts=True), "AppArmor", "/etc/apparmor.d/atoll-bwrap"),
        ("Debian", NAMESPACE, False, Surroundings(debian_forbids=True), "plain users", "unprivileged_userns_clone=1"),
        ("none allowed", NAMESPACE, False, Surroundings(no_user_namespaces=True), "switched off", "max_user_namespaces="),
        ("container, user", NAMESPACE, False, Surroundings(in_container=True), "container", "seccomp=unconfined"),
        ("container, mounts", PROC, False, Surroundings(in_container=True), "container", "systempaths=unconfined"),
        ("container, root", NAMESPACE, True, Surroundings(in_container=True), "container", "--cap-add SYS_ADMIN"),
        ("root without power", "bwrap: Creating new namespace failed: Operation not permitted", True, Surroundings(), "root may not", "CAP_SYS_ADMIN"),
        ("SELinux", NAMESPACE, False, Surroundings(selinux=True), "SELinux", "ausearch"),
        ("unknown", NAMESPACE, False, Surroundings(), "does not allow user namespaces", "doctor"),
        ("a missing path", "bwrap: Can't find source path /x: No such file or directory", False, Surroundings(), "/x", "exists"),
        ("a missing command", "bwrap: execvp /x: No such file or directory", False, Surroundings(), "cannot be started", "there"),
        ("something new", "bwrap: it is Tuesday", False, Surroundings(), "it is Tuesday", "doctor"),
        ("silence", "", False, Surroundings(), "no message", "doctor"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)  # fmt: skip
def test_a_cause_is_named_with_its_fix(
    what: str, output: str, as_root: bool, around: Surroundings, message: str, hint: str
) -> None:
    """Each known cause gets a message that names it, bubblewrap's words, and the command that mends it."""
    error = explain(f"warning: unrelated\n{output}\n", as_root=as_root, around=around, bwrap="/opt/bwrap")
    assert message in error.message, what
    assert hint in error.hint, what
    assert output.removeprefix("bwrap: ") in error.message
