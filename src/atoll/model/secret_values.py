"""Secrets of a user: rules for their names, and their values as a part of a worker's key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from atoll.blake2 import blake2b

MOST_NAME = 128
"""Characters of a name."""
MOST_VALUE_BYTES = 64 << 10
MOST_BYTES = 96 << 10
"""Of all names and values of a user: a program takes 128 KiB in one variable, and Linux 2 MiB in all."""
MOST_SECRETS = 200

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWNED_PREFIXES = (
    "ATOLL_",
    "_ATOLL",
    "LD_",
    "GLIBC_",
    "MALLOC_",
    "TCMALLOC_",
    "MIMALLOC_",
    "PYTHON",
    "LC_",
    "BASH_FUNC",
)
_LIBRARIES = ("OMP_", "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "NUMEXPR_", "VECLIB_", "KMP_")
_OWNED_NAMES = (
    "PATH HOME USER LOGNAME SHELL PWD OLDPWD TMPDIR TMP TEMP TERM LANG LANGUAGE TZ IFS ENV BASH_ENV PS4 SHELLOPTS BASHOPTS "
    "HOSTNAME VIRTUAL_ENV CONDA_PREFIX XDG_CACHE_HOME XDG_RUNTIME_DIR XDG_DATA_HOME XDG_CONFIG_HOME HF_HOME TORCH_HOME "
    "KERAS_HOME NLTK_DATA TFHUB_CACHE_DIR SENTENCE_TRANSFORMERS_HOME MPLCONFIGDIR PIP_CACHE_DIR UV_CACHE_DIR "
    "TRITON_CACHE_DIR TORCHINDUCTOR_CACHE_DIR CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES CUDA_DEVICE_ORDER"
)
_OWNED = frozenset(_OWNED_NAMES.split())
"""Variables that decide which program runs, or that Atoll sets itself."""

_KEY = os.urandom(32)
"""The key of the digests: this process's own, so that a digest tells nobody else whether a value is a certain one."""


def check_name(name: object) -> str:
    """Return a secret's name.

    Raises:
        ValueError: it cannot be the name of a variable, or names one that Atoll or the loader of programs owns.
    """
    if not isinstance(name, str) or len(name) > MOST_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"a secret's name has letters, digits and `_`, no digit first and at most {MOST_NAME} of them")
    if name in _OWNED or name.startswith((*_OWNED_PREFIXES, *_LIBRARIES)):
        raise ValueError(
            f"`{name}` is a variable that Atoll, Python or the loader of programs owns; choose another name"
        )
    return name


def check_value(value: object) -> str:
    """Return a secret's value; the error does not show it.

    Raises:
        ValueError: it is no text that a variable can have.
    """
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a secret's value is text without NUL")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("a secret's value is text that UTF-8 can have") from None
    if size > MOST_VALUE_BYTES:
        raise ValueError(f"the secret's value has {size:,} bytes, more than {MOST_VALUE_BYTES:,}")
    return value


@dataclass(frozen=True)
class SecretValues:
    """The variables of a worker that are secrets: equal by a keyed digest, and never shown.

    Args:
        digest: of names and values; see `sealed`.
        pairs: names and values, sorted by name.
    """

    digest: str = ""
    pairs: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.pairs)

    def without(self, names: Iterable[str]) -> SecretValues:
        """Return the others than these."""
        dropped = set(names)
        return sealed(pair for pair in self.pairs if pair[0] not in dropped) if dropped & set(self.names) else self

    def only(self, names: Iterable[str]) -> SecretValues:
        """Return these alone."""
        kept = set(names)
        return sealed(pair for pair in self.pairs if pair[0] in kept)


NONE = SecretValues()


def sealed(pairs: Iterable[tuple[str, str]]) -> SecretValues:
    """Return names and values with their digest."""
    found = tuple(sorted(pairs))
    if not found:
        return NONE
    state = blake2b(key=_KEY, digest_size=16)
    for part in (part for pair in found for part in pair):
        data = part.encode()
        state.update(len(data).to_bytes(8, "big") + data)
    return SecretValues(state.hexdigest(), found)
