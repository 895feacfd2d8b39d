"""Make the shipped filters from `seccomp.RULES`: `python -m atoll.sandbox.compile_filters`.

Needs `pyseccomp` and libseccomp (2.5 or newer), which only developers have.
"""

from __future__ import annotations

import tempfile

from atoll.sandbox import seccomp


def compile_filter(architecture: str) -> bytes:
    """Return the BPF program of an architecture.

    Raises:
        ImportError: `pyseccomp` is not installed, or libseccomp is not.
    """
    import pyseccomp

    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[architecture]
    built = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    built.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    if arch != pyseccomp.system_arch():
        built.add_arch(arch)
        built.remove_arch(pyseccomp.system_arch())
    for rule in seccomp.RULES:
        action = pyseccomp.ERRNO(rule.error)
        condition = rule.condition
        if condition is None:
            built.add_rule(action, rule.call)
        elif condition.negated:
            built.add_rule(action, rule.call, pyseccomp.Arg(condition.argument, pyseccomp.NE, condition.value))
        else:
            argument = pyseccomp.Arg(condition.argument, pyseccomp.MASKED_EQ, condition.mask, condition.value)
            built.add_rule(action, rule.call, argument)
    with tempfile.TemporaryFile() as file:
        built.export_bpf(file)
        file.seek(0)
        return file.read()


def main() -> None:
    """Write all filters."""
    for architecture in seccomp.ARCHITECTURES:
        path = seccomp.filter_path(architecture)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(compile_filter(architecture))
        print(f"{path.name}: {path.stat().st_size // 8} instructions")


if __name__ == "__main__":
    main()
