"""Places of packages on this machine, as the operator's index of a server here, and its clients' settings without them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from atoll import settings
from atoll.environments.asked import credentials
from atoll.host import index_settings

_PLACE = re.compile(r"file:///|/")
_DEFAULTS = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
_EXTRA = ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")


@dataclass(frozen=True)
class MachinePackages:
    """What the caller's settings say of places on this machine.

    Args:
        options: lines of the group `environments` of a server's settings; empty where there is no such place.
    x
        places: the addresses themselves.
    """

    options: str
    variables: dict[str, str]
    places: tuple[str, ...]


def read(directory: Path) -> MachinePackages:
    """Read the caller's settings of pip and uv.

    Args:
        directory: where a `pip.conf` for the clients is written.
    """
    places: dict[str, list[str]] = {}
    rest: dict[str, str] = {}
    for name, text in index_settings.collect(["any"]):
        if credentials.INDEX.fullmatch(name):
            words = (text.replace(",", " ") if name == "UV_FIND_LINKS" else text).split()
            local = [word for word in words if _PLACE.match(_bare(word))]
            places[name] = [_bare(word) for word in local]
            rest[name] = ("," if name == "UV_FIND_LINKS" else " ").join(word for word in words if word not in local)
    found = tuple(dict.fromkeys(place for words in places.values() for place in words))
    if not found:
        return MachinePackages("", {}, ())
    default = next((places[name][0] for name in _DEFAULTS if places.get(name)), "")
    extra = [place for name in _EXTRA for place in places.get(name, ())]
    links = [place for name in ("UV_FIND_LINKS", "PIP_FIND_LINKS") for place in places.get(name, ())]
    options = f"users_index_url = {json.dumps(default)}\nusers_extra_index_urls = {json.dumps(extra)}\n"
    variables = {name: rest[name] for name in settings.index_variables() if places.get(name)}
    if places.get("PIP_EXTRA_INDEX_URL"):
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip's own
    configuration = directory / "pip.conf"
    lines = [f"{option} = {rest.get(name, '')}\n" for name, option in index_settings.PIP.items()]
    configuration.write_text("[global]\n" + "".join(lines))
    variables["PIP_CONFIG_FILE"] = str(configuration)
    return MachinePackages(f"{options}users_find_links = {json.dumps(links)}\n", variables, found)


def _bare(word: str) -> str:
    return re.sub(r"^[\w-]+=", "", word)
