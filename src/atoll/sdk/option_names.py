"""Hints for options that `@isolated` does not have: slips of the fingers, and names that other tools have for them."""

from __future__ import annotations

from collections.abc import Collection

from atoll.near_names import nearest

_OTHER_NAMES = {
    "requirements": "requirement dependencies dependency deps pip_install pip_packages pypi python_packages libraries",
    "python_version": "python py_version interpreter",
    "env": "environment env_vars environ environment_variables variables envs",
    "keep_alive": "keep_warm idle_timeout container_idle_timeout scaledown_window ttl warm",
    "timeout": "time_limit max_seconds deadline walltime",
    "retries": "retry max_retries max_attempts",
    "max_concurrency": "max_workers max_containers concurrency_limit allow_concurrent_inputs concurrent parallelism",
    "setup_function": "setup init initializer enter on_start",
    "machine_type": "machine instance_type instance size hardware flavor accelerator",
    "local_modules": "modules include py_modules add_local_python_source source",
    "mounts": "mount binds volumes volume shares",
    "network": "internet net block_network",
    "packages": "conda_packages conda apt apt_install apt_packages system_packages",
    "env_yml": "environment_yml environment_file conda_file env_file",
    "cpu": "cpus num_cpus cores n_cpus vcpu vcpus ncpu",
    "gpu": "gpus num_gpus n_gpus gpu_count accelerators gpu_type cuda",
    "memory": "mem ram memory_mb memory_gb memory_limit",
    "disk": "ephemeral_disk storage disk_size tmp_size scratch",
    "grace": "grace_period stop_timeout kill_timeout",
    "terminal": "tty pty",
    "kind": "backend builder environment_kind",
    "secrets": "secret secret_names tokens credentials",
    "on_done": "notify callback on_success on_failure webhook",
}
"""Names that people bring from other tools, by the option that does it here."""

_SIZES = ("cpu", "gpu", "memory", "disk")

_ELSEWHERE = {
    "image docker_image dockerfile container container_image docker base_image": (
        'functions run in no image: `requirements` name Python packages, and `kind="conda"` with `packages` others'
    ),
    "name app_name label": "a function is known by its own name",
    "schedule cron period": "schedules are not in this version of Atoll yet",
    "cwd working_dir workdir": 'a function begins in its home directory; files that stay are below "/data"',
    "user uid": "the host chooses the user that functions run as",
    "detach detached background": "`f.submit(...)` goes on in this program",
    "cache cached memoize": "`@cached` keeps results in a worker",
}
"""Names of things that are done another way, and that way."""


def unknown(name: str, known: Collection[str]) -> str:
    """Return the message for an option that is not known, with a hint.

    Args:
        known: the options that there are.
    """
    return f"unknown option `{name}`; {hint(name, known)}"


def hint(name: str, known: Collection[str]) -> str:
    """Return the hint for an option that is not known.

    Args:
        known: the options that there are.
    """
    asked = name.lower()
    for option, others in _OTHER_NAMES.items():
        if asked in others.split():
            if option in known:
                return f"did you mean `{option}`?"
            if option in _SIZES:
                return 'did you mean `machine_type`, such as "L" or "GPU"?'
    for others, text in _ELSEWHERE.items():
        if asked in others.split():
            return text
    near = nearest(name, known)
    return f"did you mean `{near}`?" if near else f"the options are {', '.join(known)}"
