"""A mended atheris 2.3, the last release for Python 3.11.

It makes room in the bytecode for its counters, and lengthens jumps that then go farther than one byte says. The last
instruction of a function it forgets: a loop that ends a function, such as `while True`, and that grows beyond 255 words
afterwards goes on one word too late, with the wrong value on the stack. `decode.Decoder.number` is such a loop.
"""

from __future__ import annotations

from typing import Any

from atheris import instrument_bytecode


def mend() -> None:
    """Make instrumentation treat a function's last instruction like the others."""
    lengthen_others = instrument_bytecode.Instrumentor._handle_size_changes

    def lengthen(self: Any) -> None:
        lengthen_others(self)
        last = self._get_linear_instruction_listing()[-1]
        if last.mnemonic in instrument_bytecode.REL_REFERENCE_IS_INVERTED:
            while last.arg != (words := (last.offset + last.get_size() - last.reference) // 2):
                last.arg = words
        last.check_state()

    instrument_bytecode.Instrumentor._handle_size_changes = lengthen
