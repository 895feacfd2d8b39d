"""GPUs as a sandbox is shown them; files stand for devices and the driver."""

from __future__ import annotations

from pathlib import Path

from atoll.sandbox import gpus
from atoll.sandbox.limits import systemd_scope


def test_named_devices_are_found_and_missing_ones_are_not(tmp_path: Path) -> None:
    """A list of paths is taken in its order, without those that do not exist; `none` gives none."""
    for name in ("nvidia0", "nvidia2"):
        (tmp_path / name).touch()
    found = gpus.find(f"{tmp_path}/nvidia2, {tmp_path}/nvidia1,{tmp_path}/nvidia0")
    assert found.names == ("nvidia2", "nvidia0")
    assert f"{tmp_path}/nvidia0" in found.devices(["nvidia0"])
    assert f"{tmp_path}/nvidia2" not in found.devices(["nvidia0"])
    assert gpus.find("none").names == ()


def test_the_driver_s_name_of_a_gpu_is_what_cuda_is_told(tmp_path: Path) -> None:
    """`CUDA_VISIBLE_DEVICES` holds the UUID that the driver lists for the device's minor number."""
    for minor, uuid in (("0", "GPU-aaaa"), ("1", "GPU-bbbb")):
        (tmp_path / minor).mkdir()
        (tmp_path / minor / "information").write_text(f"Model:\t T4\nGPU UUID:\t {uuid}\nDevice Minor:\t {minor}\n")
    assert gpus._listed(str(tmp_path)) == {"/dev/nvidia0": ("GPU-aaaa", "T4"), "/dev/nvidia1": ("GPU-bbbb", "T4")}
    known = gpus.Gpus([gpus.Gpu("/dev/nvidia0", "GPU-aaaa"), gpus.Gpu("/dev/nvidia1", "GPU-bbbb")], ["/dev/nvidiactl"])
    assert known.variables(["nvidia1"]) == {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}
    assert known.variables([]) == {}
    assert known.devices([]) == ()
    assert known.devices(["nvidia1"]) == ("/dev/nvidia1", "/dev/nvidiactl")


def test_systemd_is_asked_for_a_delegated_scope_around_the_process() -> None:
    """The call names the process and asks for delegation, with as many properties as it announces."""
    words = systemd_scope.call(4711)
    at = words.index("fail")
    assert words[at - 1] == "atoll-4711.scope"
    assert words[at + 1] == "3"
    assert words[at + 2 :] == [
        *("PIDs", "au", "1", "4711"),
        *("Delegate", "b", "true"),
        *("Description", "s", "Atoll's functions"),
        "0",
    ]
