"""The NVIDIA GPUs of this machine, and the devices and files of them that a sandbox sees.

A sandbox that has GPUs gets their device nodes, the driver's control nodes, `/sys` read-only (where the driver looks
for their place on the bus), and the driver's libraries where these are not among the system's. It has no node of
another GPU, so no variable of its own can give it one. `CUDA_VISIBLE_DEVICES` names GPUs by the driver's UUID if
known, which means the same in every sandbox.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.model.mounts import Bind

CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
"""Nodes of the driver as a whole, shown with each GPU where they exist."""

LIBRARY_DIRECTORIES = ("/run/opengl-driver/lib", "/opt/nvidia/lib64", "/opt/nvidia/lib")
"""Directories of drivers outside of `/usr`, which every sandbox sees."""

DRIVER = "/proc/driver/nvidia/gpus"


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Args:
        device: path of its device node.
        uuid: the driver's name for it; empty where it is not known.
        product: the name of the card, such as `NVIDIA A100-SXM4-40GB`; empty where it is not known.
    """

    device: str
    uuid: str = ""
    product: str = ""

    @property
    def name(self) -> str:
        return os.path.basename(self.device)


class Gpus:
    """The GPUs that functions may have."""

    def __init__(self, found: Sequence[Gpu], control: Sequence[str] = ()) -> None:
        self._known = {one.name: one for one in found}
        self._control = tuple(control)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._known)

    @property
    def products(self) -> tuple[tuple[str, str], ...]:
        """The names of the GPUs with those of their products."""
        return tuple((name, one.product) for name, one in self._known.items())

    def devices(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the device nodes of a sandbox with these GPUs."""
        return (*(self._known[name].device for name in names), *(self._control if names else ()))

    def libraries(self, names: Sequence[str]) -> list[Bind]:
        """Return the directories of the driver that a sandbox with these GPUs is shown besides the system's."""
        found = [path for path in LIBRARY_DIRECTORIES if names and os.path.exists(f"{path}/libcuda.so.1")]
        return [Bind(path, path) for path in found if not path.startswith("/run/")]

    def variables(self, names: Sequence[str]) -> dict[str, str]:
        """Return the variables of a worker with these GPUs; none for none, since it sees no device."""
        chosen = [self._known[name] for name in names]
        visible = [one.uuid or str(number) for number, one in enumerate(chosen)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(visible)} if names else {}


def find(setting: str) -> Gpus:
    """Return the GPUs that the setting `pool.gpus` allows: `auto`, `none`, or paths of devices, by commas."""
    if setting == "none":
        return Gpus([])
    paths = [path.strip() for path in setting.split(",") if path.strip()]
    if setting in ("", "auto"):
        paths = [path for path in glob.glob("/dev/nvidia*") if re.fullmatch(r"/dev/nvidia[0-9]+", path)]
        paths.sort(key=lambda path: int(path.removeprefix("/dev/nvidia")))
    listed = _listed(DRIVER)
    found = [Gpu(path, *listed.get(path, ("", ""))) for path in paths if os.path.exists(path)]
    capabilities = sorted(glob.glob("/dev/nvidia-caps/*"))
    return Gpus(found, [path for path in (*CONTROL, *capabilities) if found and os.path.exists(path)])


def _listed(directory: str) -> dict[str, tuple[str, str]]:
    """Return UUID and product of the devices that the driver lists."""
    found = {}
    for path in sorted(Path(directory).glob("*/information")):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text("utf-8", "replace").splitlines() if ":" in line)
        except OSError:
            continue
        minor, uuid = fields.get("Device Minor", "").strip(), fields.get("GPU UUID", "").strip()
        if minor.isdigit():
            known = uuid if re.fullmatch(r"GPU-[0-9a-fA-F-]+", uuid) else ""
            found[f"/dev/nvidia{minor}"] = known, fields.get("Model", "").strip()[:100]
    return found
