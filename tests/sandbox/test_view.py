"""What a sandboxed process sees and is, compared with an allow-list."""

from __future__ import annotations

import fnmatch
import json
import os
from typing import Any

import pytest

from .conftest import Someone

pytestmark = pytest.mark.as_user

LOOK = r"""
import json, os, stat, sys
hidden = set(json.loads(sys.argv[1]))
found, writable, closed = {}, [], []
def walk(path):
    if path not in hidden:
        try:
            names = sorted(os.listdir(path))
        except PermissionError:
            closed.append(path)
            return
        for name in names:
            child = os.path.join(path, name)
            mode = os.lstat(child).st_mode
            found[child] = "link" if stat.S_ISLNK(mode) else "directory" if stat.S_ISDIR(mode) else \
                "file" if stat.S_ISREG(mode) else "device"
            if stat.S_ISDIR(mode):
                walk(child)
    if path != "/proc":
        try:
            probe = os.path.join(path, ".probe")
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL))
            os.unlink(probe)
            writable.append(path)
        except OSError:
            pass
walk("/")
status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
def read(path):
    try:
        return open(path, "rb").read().decode()
    except OSError as error:
        return type(error).__name__
print(json.dumps({
    "found": found, "writable": writable, "closed": closed,
    "mounts": [line.split()[:4] for line in open("/proc/self/mounts")],
    "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "environment": dict(os.environ),
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "capabilities": {name: status[name] for name in status if name.startswith("Cap")},
    "no_new_privs": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "descriptors": {name: os.readlink("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")
                    if os.path.exists("/proc/self/fd/" + name)},
    "hostname": os.uname().nodename, "cwd": os.getcwd(), "session": os.getsid(0), "pid": os.getpid(),
    "init_line": read("/proc/1/cmdline"), "init_environment": read("/proc/1/environ"),
    "init_root": read("/proc/1/root/etc/shadow"), "passwd": read("/etc/passwd"),
}))
"""

SYSTEM = {"/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr"}
ETC = {
    *("resolv.conf", "hosts", "hostname", "nsswitch.conf", "host.conf", "gai.conf", "services", "protocols", "rpc"),
    *("ethertypes", "netconfig", "passwd", "group", "localtime", "timezone", "mime.types", "mailcap", "magic"),
    *("magic.mime", "ca-certificates.conf", "ca-certificates", "crypto-policies", "ssl", "pki"),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "os-release", "debian_version", "lsb-release"),
    *("redhat-release", "alpine-release", "java", "java-*", "fonts", "OpenCL", "vulkan", "glvnd", "egl", "drirc"),
    *("openmpi", "openmpi-*", "pmix", "prrte", "mpich", "ucx", "libibverbs.d", "libnl", "libnl-3", "ImageMagick-*"),
    *("ghostscript", "papersize", "paperspecs", "R", "perl", "julia", "octave.conf", "mono", "dotnet", "texmf", "xml"),
    *("sgml", "libreoffice", "chromium", "chromium.d", "alsa", "asound.conf", "dictionaries-common", "mecabrc"),
    *("matplotlibrc", "postgresql-common", "odbcinst.ini", "locale.alias", "terminfo"),
}
PARTS = {
    "/etc/ssl": {"certs", "openssl.cnf", "cert.pem", "ca-bundle.pem"},
    "/etc/pki": {"ca-trust", "java", "tls"},
    "/etc/pki/tls": {"certs", "cert.pem", "openssl.cnf", "openssl.d"},
    "/var": {"tmp", "run", "lock", "lib", "cache"},
    "/var/cache": {"fontconfig"},
    "/var/lib": {"ghostscript", "texmf", "xml-core", "dictionaries-common", "aspell", "mecab"},
}
"""Directories of which only some names are shown. All that is below another listed directory is."""
DEV = {
    *("null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "core"),
    *("pts", "ptmx", "shm", "pts/ptmx"),
}
RUN = {"/run", "/run/lock", "/run/user"}
WRITABLE = {"/data", "/tmp", "/dev/shm", "/home/user", *RUN}


def look(someone: Someone) -> dict[str, Any]:
    data = someone.directory("data")
    (data / "kept").write_text("x")
    hidden = sorted(SYSTEM | {"/proc", someone.base})
    done = someone.confine_python(
        LOOK,
        json.dumps(hidden),
        binds=[[str(data), "/data", True]],
        environment={"GIVEN": "value of the sandbox"},
        workdir="/data",
    )
    assert done.report["status"] == 0, done
    seen: dict[str, Any] = json.loads(done.output)
    return seen | {"report": done.report, "data": data}


def _is_listed(path: str) -> bool:
    """Return whether a path of the system is one that sandboxes are meant to see."""
    for directory in sorted(PARTS, key=len, reverse=True):
        if path.startswith(f"{directory}/"):
            return path.removeprefix(f"{directory}/").split("/")[0] in PARTS[directory]
    return path.startswith("/etc/") and any(fnmatch.fnmatchcase(path.split("/")[2], name) for name in ETC)


def test_a_sandbox_sees_the_allow_list_and_nothing_else(someone: Someone) -> None:
    """Every path, mount, process, descriptor and variable inside is one that the allow-list names."""
    seen = look(someone)
    allowed = SYSTEM | {f"/dev/{name}" for name in DEV} | RUN
    allowed |= {"/etc", "/var", "/dev", "/proc", "/tmp", "/home", "/home/user", "/data", "/data/kept"}
    allowed |= {"/app"}  # a link that leads to nothing
    path = someone.base
    if not path.startswith("/usr"):
        while path != "/":
            allowed.add(path)
            path = os.path.dirname(path)
    assert {path for path in seen["found"] if not _is_listed(path)} - allowed == set()
    assert {"/usr", "/proc", "/dev/null", "/tmp", "/data/kept", "/etc/passwd", "/etc/hosts"} <= set(seen["found"])
    assert seen["closed"] == []
    assert set(seen["writable"]) == WRITABLE

    assert seen["pids"] == [1, seen["pid"]]
    assert set(seen["descriptors"]) == {"0", "1", "2"}
    assert seen["environment"] == {
        "GIVEN": "value of the sandbox",
        "HOME": "/home/user",
        "LANG": "C.UTF-8",
        "LOGNAME": "user",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PWD": "/data",
        "TMPDIR": "/tmp",
        "USER": "user",
    }
    assert seen["hostname"] == "atoll"
    assert seen["cwd"] == "/data"


def test_mounts_are_read_only_except_those_that_are_meant_to_be_written(someone: Someone) -> None:
    """Each mount is nosuid, and only `/data`, the memory directories, devices and `/proc` are writable."""
    seen = look(someone)
    devices = {f"/dev/{name}" for name in (*DEV, "pts")} | {"/proc"}
    for _source, target, _kind, options in seen["mounts"]:
        flags = options.split(",")
        assert "nosuid" in flags, target
        assert ("rw" in flags) == (target in WRITABLE | devices), (target, options)
        if target in WRITABLE - {"/data"}:
            assert any(flag.startswith("size=") for flag in flags), target


def test_a_sandboxed_process_has_no_privileges(someone: Someone) -> None:
    """The command is its identity and never uid 0, without groups or capabilities, filtered, with no way back."""
    seen = look(someone)
    uid = seen["report"]["uid"]
    assert uid != 0
    assert seen["ids"][0] == [uid] * 3
    assert seen["ids"][1][0] != 0
    assert len(set(seen["ids"][1])) == 1
    assert set(seen["ids"][2]) <= {seen["ids"][1][0]}
    assert {int(value, 16) for value in seen["capabilities"].values()} == {0}
    assert (seen["no_new_privs"], seen["seccomp"]) == ("1", "2")
    assert seen["session"] != 0, "it shares no session with a terminal of the host"
    assert f"user:x:{uid}:" in seen["passwd"]
    assert "root:x:0:" in seen["passwd"]


def test_the_reaper_tells_nothing_about_the_host(someone: Someone) -> None:
    """Neither the variables nor the options that bubblewrap was given can be read from pid 1."""
    seen = look(someone)
    assert seen["init_environment"] in ("", "PermissionError")
    assert "value of the sandbox" not in seen["init_line"]
    assert str(seen["data"]) not in seen["init_line"]
    assert seen["init_root"] in ("PermissionError", "FileNotFoundError")


def test_files_in_data_belong_to_the_identity(someone: Someone) -> None:
    """What a function writes to `/data` belongs, on the host, to the uid that it ran as."""
    data = someone.directory("data")
    done = someone.confine(["sh", "-c", "echo x > /data/made"], binds=[[str(data), "/data", True]])
    assert done.report["status"] == 0
    assert (data / "made").stat().st_uid == done.report["uid"]


@pytest.mark.parametrize("place", ["/tmp/below", "/home/user/below/deep", "/opt/a/b"])
def test_a_bind_may_lie_below_a_memory_directory(someone: Someone, place: str) -> None:
    """A bind below `/tmp` or the home directory is there, and its parents can be entered."""
    source = someone.directory("shown")
    (source / "file").write_text("hello")
    source.chmod(0o755)
    done = someone.confine(["cat", f"{place}/file"], binds=[[str(source), place, False]])
    assert done.output == "hello"
