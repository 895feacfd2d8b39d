"""The system call filter, in a real sandbox."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal

import pytest

from atoll.sandbox import seccomp

from .conftest import Someone

pytestmark = [
    pytest.mark.as_user,
    pytest.mark.skipif(
        platform.machine() not in seccomp.ARCHITECTURES, reason="no filter is shipped for this architecture"
    ),
]

CALLS = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
results = []
for number, arguments in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    results.append([value, ctypes.get_errno()])
print(json.dumps(results))
"""

FOREIGN = """
import ctypes, mmap, os, signal
def ends(action):
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def i386():
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
def x32():
    ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))
print(ends(i386), ends(x32), ends(lambda: None))
"""

ORDINARY = """
import multiprocessing, os, socket, subprocess, threading
def square(value):
    return value * value
if __name__ == "__main__":
    found = []
    thread = threading.Thread(target=lambda: found.append(subprocess.check_output(["/bin/echo", "said"]).decode()))
    thread.start(); thread.join()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found.append(pool.map(square, range(4)))
    memory = multiprocessing.Value("i", 3)
    ours, theirs = socket.socketpair()
    ours.send(b"x"); found.append(theirs.recv(1).decode())
    socket.getaddrinfo("localhost", 80)
    found.append(len(os.sched_getaffinity(0)) > 0)
    print(found)
"""


def arguments_for(rule: seccomp.Rule) -> list[int]:
    """Return arguments that the rule's condition matches, harmless where the call would be made after all."""
    arguments = [0] * 6
    for condition in (rule.condition, rule.second):
        if condition is None:
            continue
        arguments[condition.argument] = 0x20000 if condition.negated else condition.value
        if rule.call == "ioctl":
            arguments[0] = -1
        if rule.call == "clone":
            arguments[condition.argument] |= int(signal.SIGCHLD)
    if rule.call in ("acct", "setns", "swapoff", "swapon", "umount2", "umount", "chroot", "delete_module"):
        arguments[0] = -1
    return arguments


def test_every_rule_refuses_its_call(someone: Someone) -> None:
    """Each call of the list, made in a sandbox with arguments that match, fails with the list's error."""
    pyseccomp = pytest.importorskip(
        "pyseccomp", reason="libseccomp gives the numbers of the calls", exc_type=ImportError
    )
    tried = []
    for rule in seccomp.RULES:
        number = seccomp.NEW_CALLS.get(rule.call) or pyseccomp.resolve_syscall(pyseccomp.system_arch(), rule.call)
        if number >= 0:  # negative: this architecture does not have it
            tried.append((rule, [number, arguments_for(rule)]))
    assert len(tried) > 60
    done = someone.confine_python(CALLS, json.dumps([call for _rule, call in tried]))
    assert done.report["status"] == 0, done
    got = {}
    for (rule, _call), (value, error) in zip(tried, json.loads(done.output), strict=True):
        if (value, error) != (-1, rule.error):
            got[rule] = (value, errno.errorcode.get(error, error))
    assert got == {}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="i386 and x32 are foreign to x86_64")
def test_calls_of_a_foreign_abi_kill_the_process(someone: Someone) -> None:
    """A process that calls the kernel by the numbers of i386 or x32 is killed; another one is not."""
    done = someone.confine_python(FOREIGN)
    # A kernel without IA-32 emulation gives SIGSEGV for the first.
    i386, x32, nothing = map(int, done.output.split())
    assert i386 in (-signal.SIGSYS, -signal.SIGSEGV)
    assert (x32, nothing) == (-signal.SIGSYS, 0)


def test_programs_that_do_ordinary_things_work(someone: Someone) -> None:
    """Threads, subprocesses, process pools, shared memory, sockets and name resolution work inside."""
    done = someone.confine_python(ORDINARY)
    assert done.output == "['said\\n', [0, 1, 4, 9], 'x', True]\n", done


def test_no_namespace_can_be_made_by_a_program(someone: Someone) -> None:
    """`unshare` cannot make a user namespace in a sandbox, nor a mount namespace."""
    for option in ("--user", "--mount"):
        done = someone.confine(["unshare", option, "true"])
        assert done.report["status"] == 1
        assert "Operation not permitted" in done.complaints


def test_the_shipped_filters_are_those_of_the_rules() -> None:
    """Compiling the rules anew gives the files of the package, byte for byte."""
    pytest.importorskip("pyseccomp", reason="libseccomp is not installed", exc_type=ImportError)
    from atoll.sandbox.seccomp import compile_filter

    for architecture in seccomp.ARCHITECTURES:
        assert compile_filter(architecture) == seccomp.program(architecture), "run `python -m atoll.sandbox.seccomp`"


def test_the_filter_is_readable_without_libseccomp() -> None:
    """A sandbox needs no more than the packaged file: it holds whole BPF instructions."""
    for architecture in seccomp.ARCHITECTURES:
        program = seccomp.program(architecture)
        assert program
        assert len(program) % 8 == 0
        assert os.path.getsize(seccomp.filter_path(architecture)) < 8192
