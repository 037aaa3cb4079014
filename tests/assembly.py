"""Compiles a kernel for an architecture that is not here, and looks at the machine code."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dither.gpu.launch import OPTIONS

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TENSOR_CORES = {80: "IMMA", 89: "IMMA", 90: "IGMMA", 100: "IMMA|UTCIMMA", 120: "IMMA"}
"""What multiplies int8 there, by architecture."""
SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may have."""


@dataclass(frozen=True)
class Code:
    """What the compiler made.

    Args:
        shared: bytes of shared memory.
        registers: of a thread.
        stack: bytes of a thread that did not fit registers, or were meant for memory.
        sass: machine code.
    """

    shared: int
    registers: int
    stack: int
    sass: str

    def count(self, pattern: str) -> int:
        """Instructions whose name begins so."""
        return len(re.findall(rf"\b(?:{pattern})\b", self.sass))


def compiled(
    kernel: Any,
    pointers: dict[str, str],
    numbers: dict[str, str],
    constants: dict[str, Any],
    arch: int,
    warps: int,
    stages: int,
    registers: int | None = None,
) -> Code:
    """Machine code of a kernel for ``arch``.

    Args:
        kernel: a jitted function.
        pointers: dtypes of tensors, aligned; those that are not named here or below are None.
        numbers: dtypes of numbers that are known only at run time; those that end in ``!`` are multiples of 16.
        constants: of the rest.
        warps, stages, registers: as of ``launch``.
    """
    names = kernel.arg_names
    plain = {name: dtype.rstrip("!") for name, dtype in numbers.items()}
    signature = {n: f"*{pointers[n]}" if n in pointers else plain.get(n, "constexpr") for n in names}
    fixed = {(i,): constants.get(n) for i, n in enumerate(names) if signature[n] == "constexpr"}
    aligned = [i for i, n in enumerate(names) if n in pointers or numbers.get(n, "").endswith("!")]
    source = ASTSource(kernel, signature, fixed, {(i,): [["tt.divisibility", 16]] for i in aligned})
    options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers, **OPTIONS}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        used = _ask("-res-usage", file.name)
        sass = _ask("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert found is not None, used
    return Code(made.metadata.shared, int(found[1]), int(found[2]), sass)


def _ask(option: str, file: str) -> str:
    return subprocess.run([TOOLS / "cuobjdump", option, file], capture_output=True, text=True, check=True).stdout
