"""Requirements as values."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.environments.asked.local_path import LocalPath
from atoll.environments.asked.redaction import redact, secrets_in
from atoll.environments.asked.requirements import parse, refuse_host_paths
from atoll.environments.build.diagnosis import explain
from atoll.errors import EnvironmentBuildError


@pytest.mark.parametrize(
    ("entry", "normal"),
    [
        ("numpy", "numpy"),
        ("  NumPy ", "numpy"),
        ("Foo_Bar.baz", "foo-bar-baz"),
        ("numpy >= 2, < 3", "numpy<3,>=2"),
        ("numpy<3,>=2", "numpy<3,>=2"),
        ("requests[Socks,security]", "requests[security,socks]"),
        ("tomli; python_version<'3.11'", 'tomli; python_version < "3.11"'),
        ("numpy==2.0  # the last good one", "numpy==2.0"),
        ("pip @ https://example.org/pip.whl", "pip @ https://example.org/pip.whl"),
        ("git+https://example.org/x.git@main", "git+https://example.org/x.git@main"),
        ("https://example.org/x-1-py3-none-any.whl", "https://example.org/x-1-py3-none-any.whl"),
        ("x==1 --hash=sha256:bb --hash=sha256:aa", "x==1 --hash=sha256:aa --hash=sha256:bb"),
    ],
)
def test_a_requirement_has_one_normal_form(entry: str, normal: str) -> None:
    """Spellings of one requirement give the same text."""
    assert parse([entry]).packages == (normal,)


@pytest.mark.parametrize(
    "entry",
    [
        "atoll",
        "Atoll>=0.1",
        "fal-serverless",
        "fal_serverless",
        "FAL.Serverless[extra]==0.6.*",
        "fal-serverless @ https://example.org/fal.whl",
        "atoll; python_version > '3'",
        "",
        "# a comment",
    ],
)
def test_what_the_sandbox_has_is_not_installed(entry: str) -> None:
    """This package under any of its names, and nothing, asks for nothing."""
    assert parse([entry]).empty


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ("/srv/project", LocalPath("/srv/project")),
        ("/srv/project/", LocalPath("/srv/project")),
        ("-e /srv/project[Dev,all]", LocalPath("/srv/project", ("all", "dev"))),
        ("--editable=/srv/project", LocalPath("/srv/project")),
        ("file:///srv/my%20project", LocalPath("/srv/my project")),
        ("project @ file:///srv/project", LocalPath("/srv/project", (), "project")),
        ("/srv/x-1-py3-none-any.whl", LocalPath("/srv/x-1-py3-none-any.whl")),
    ],
)
def test_local_paths_are_told_from_packages(entry: str, path: LocalPath) -> None:
    """A path on this machine is read as one in each way that pip writes it."""
    assert parse([entry]).paths == (path,)
    assert parse([entry]).packages == ()


def test_options_keep_their_order_and_their_values() -> None:
    """Options are read as words, with `=`, shortened, and over two entries."""
    entries = ["--index-url https://a.example/simple", "-f=/wheels", "--extra-index-url", "https://b.example", "--pre"]
    assert parse(entries).options == (
        ("--index-url", "https://a.example/simple"),
        ("--find-links", "/wheels"),
        ("--extra-index-url", "https://b.example"),
        ("--pre", ""),
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("numpy=>2", "numpy=>2"),
        ("not a name", "not a name"),
        ("./project", "./project"),
        ("--index-ulr https://x.example", "--index-ulr"),
        ("-r requirements.txt", "requirements.txt"),
        ("--index-url", "--index-url"),
        ("numpy\n--index-url https://evil.example", "more than one line"),
        ("https://x.example/a.whl\nnumpy", "more than one line"),
        ("x @ https://user:hunter22@host.example/ y", "host.example"),
        ("x @ http://[host.example", "host.example"),
        ("http://[host.example/x.whl", "host.example"),
        ("--index-url http://[host.example", "host.example"),
        ("x; " + "(" * 5000, "x; "),
    ],
)
def test_what_cannot_be_read_is_named(entry: str, said: str) -> None:
    """The error names the entry, without its credentials."""
    with pytest.raises(EnvironmentBuildError) as caught:
        parse(["requests", entry])
    assert said in str(caught.value)
    assert caught.value.hint
    assert "hunter22" not in str(caught.value)


def test_a_slip_in_an_option_is_pointed_at() -> None:
    """An unknown option's hint is the nearest known one."""
    with pytest.raises(EnvironmentBuildError, match="--index-url"):
        parse(["--index-ulr https://x.example"])


@pytest.mark.parametrize(
    ("entry", "sources"),
    [
        ("numpy", False),
        ("/srv/project", True),
        ("/srv/x-1-py3-none-any.whl", False),
        ("git+https://example.org/x", True),
        ("https://example.org/x-1.tar.gz", True),
        ("https://example.org/x-1-py3-none-any.whl#sha256=aa", False),
        ("--no-binary numpy", True),
    ],
)
def test_what_must_be_built_is_known_beforehand(entry: str, sources: bool) -> None:
    """Source trees, repositories and archives need a build; names and wheels may not."""
    assert parse([entry]).may_need_building is sources


@pytest.mark.parametrize(
    "entries",
    [
        ["/etc"],
        ["-e /etc"],
        ["--editable=/etc"],
        ["file:///etc"],
        ["FILE:///etc"],
        ["File:/etc"],
        ["x @ file:///etc"],
        ["x @ FILE:///root/.ssh"],
        ["x @ /etc"],
        ["x[a] @ fIle:/etc ; python_version > '3'"],
        ["git+file:///etc"],
        ["git+/etc"],
        ["x @ git+FILE:///etc"],
        ["git+ssh://git@host.example/x"],
        ["ftp://host.example/x.whl"],
        ["https:///etc"],
        ["https:/etc"],
        ["https://host.example/x.whl -r /etc/passwd"],
        ["https://host.example/x.whl ; python_version > '3' -r /etc/passwd"],
        ["x==1 --hash=sha256:aa -r /etc/passwd"],
        ["https://host.example/x.whl --hash=sha256:aa --find-links=/etc"],
        ["https://host.example/${UV_DEFAULT_INDEX}/x.whl"],
        ["x @ https://host.example/${HOME}"],
        ["x @ ${HOME}"],
        ["--index-url=/etc"],
        ["--index-url", "/etc"],
        ["-i /etc"],
        ["--index=own=file:///etc"],
        ["--default-index file:///etc"],
        ["--pre --extra-index-url=/home/user/.ssh"],
        ["--extra-index-url 'https://host.example /etc'"],
        ["--find-links=/etc"],
        ["-f", "/etc"],
        ["-f=../etc"],
        ["--find-links 'https://host.example,/etc'"],
        ["--find-links git+https://host.example/x"],
        ["--trusted-host host.example"],
        ["--no-binary=/etc"],
        ["--only-binary '--find-links=/etc'"],
    ],
)
def test_host_paths_are_refused_in_any_spelling(entries: list[str]) -> None:
    """Whatever could make the builder look at this machine's files is refused by its value, not by its spelling."""
    with pytest.raises(EnvironmentBuildError):
        refuse_host_paths(parse(["requests", *entries]))


@pytest.mark.parametrize(
    "entries",
    [
        ["numpy>=2,<3; python_version > '3'", "Foo[bar]"],
        ["x==1 --hash=sha256:bb --hash=sha256:aa"],
        ["x @ https://host.example/x-1.tar.gz#egg=x&subdirectory=y ; python_version > '3'"],
        ["http://host.example:8080/x.whl?a=b --hash=sha256:aa"],
        ["HTTPS://host.example/x.whl ; python_version > '3'"],
        ["git+https://user:token@host.example/x.git@main", "x @ hg+https://host.example/x"],
        ["-i https://host.example/simple", "--pre", "--no-deps", "--prefer-binary"],
        ["--extra-index-url", "https://user:token@host.example/simple", "--find-links=http://host.example/"],
        ["--no-binary :all:", "--only-binary=numpy,scipy"],
        ["fal-serverless", "# a comment", ""],
    ],
)
def test_packages_and_addresses_are_allowed_everywhere(entries: list[str]) -> None:
    """Names, addresses of the network, index options and flags say nothing about this machine's files."""
    refuse_host_paths(parse(entries))


def test_a_refused_entry_is_named_without_its_credentials() -> None:
    """The error names the entry that is refused, as a log may show it."""
    with pytest.raises(
        EnvironmentBuildError, match=r"`--find-links ftp://host\.example/x` names a local path"
    ) as caught:
        refuse_host_paths(parse(["numpy", "--find-links ftp://user:hunter22@host.example/x"]))
    assert "hunter22" not in str(caught.value)


def test_nothing_that_is_shown_holds_credentials() -> None:
    """Neither what a record shows nor a representation has user information or tokens in it."""
    entries = [
        "x @ https://user:hunter22@host.example/x.whl?token=hunter23",
        "git+https://hunter24@host.example/x.git",
        "--index-url https://user:hunter25@host.example/simple",
    ]
    parsed = parse(entries)
    shown = " ".join(parsed.redacted()) + repr(parsed)
    assert "hunter" not in shown
    assert "host.example/x.whl" in shown
    assert secrets_in(" ".join(entries)) == {"hunter22", "hunter24", "hunter25"}
    assert redact("see https://host.example/a?sig=1#f and text?") == "see https://host.example/a#f and text?"


_LONG = 1 << 15


@pytest.mark.parametrize(
    "entry",
    [
        "a" + " " * _LONG + "b",
        "a" + " --hash" * (_LONG // 7),
        "/" + "[" * _LONG,
        "# " * (_LONG // 2) + "\nx",
        "a" + ">=1," * (_LONG // 4) + ">1",
        "http://" + "[" * _LONG,
    ],
)
def test_a_hostile_requirement_is_read_in_linear_time(entry: str) -> None:
    """No spelling makes the daemon compute for long."""
    started = time.process_time()
    with contextlib.suppress(EnvironmentBuildError):
        parse([entry])
    assert time.process_time() - started < 1


@pytest.mark.parametrize("line", ["://a" * 60_000, "://a?" * 60_000, "?://@" * 60_000, "://a" * 60_000 + "?b"])
def test_hostile_output_is_redacted_in_linear_time(line: str) -> None:
    """What a build prints cannot make the daemon compute for long."""
    started = time.process_time()
    redact(line)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("log", ["\n" * (1 << 20), "\n" + " " * (1 << 20), "and " * (1 << 18), "://a" * (1 << 18)])
def test_a_hostile_log_is_explained_in_linear_time(log: str) -> None:
    """Neither can the log of a failed build."""
    started = time.process_time()
    explain("0" * 32, 1, log)
    assert time.process_time() - started < 1


def test_a_failed_build_that_printed_too_much_is_still_one() -> None:
    """Where the builder's first words are no longer kept, its last ones say what failed."""
    log = "x" * 99 + "\n"
    log = log * 5000 + "hint: Build failures usually indicate a problem with the package or the build environment\n"
    assert "a package failed to build from its source" in str(explain("0" * 32, 1, log))


_names = st.from_regex(r"[a-z][a-z0-9]{0,6}([-_.][a-z0-9]{1,4})?", fullmatch=True).filter(
    lambda name: (
        name.replace("_", "-").replace(".", "-") not in ("atoll", "fal-serverless")
        and not name.endswith(
            (".in", ".txt", ".toml", ".yml", ".yaml", ".whl", ".zip", ".lock", ".cfg")
        )  # names of files
    )
)
_entries = st.lists(
    st.tuples(_names, st.sampled_from(["", "==1", ">=2,<3", "<3,>=2", "[a,b]", "[b,a]>1"])).map("".join), max_size=6
)


@given(_entries, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(entries: list[str], random: object) -> None:
    """A shuffled list with repetitions is the same requirements."""
    shuffled = [*entries, *entries[:2]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert parse(shuffled) == parse(entries)


@given(_entries)
def test_the_normal_form_is_stable(entries: list[str]) -> None:
    """Reading the normal form again changes nothing."""
    parsed = parse(entries)
    assert parse(parsed.packages) == parsed


@pytest.mark.parametrize("option", ["-e", "--editable"])
def test_an_editable_path_in_an_entry_of_its_own_is_explained(option: str) -> None:
    """`-e` alone is refused with the way to write it."""
    with pytest.raises(EnvironmentBuildError) as caught:
        parse([option, "/some/path"])
    assert f"`{option}`" in caught.value.message
    assert f"{option} ./path" in caught.value.hint
