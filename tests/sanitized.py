"""C++ of the project under the address and undefined-behaviour sanitizers, with a main of its own."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import dither.native

COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
SOURCES = Path(dither.native.__file__).parent
FLAGS = ("-std=c++17", "-O1", "-g", "-pthread", "-ffp-contract=off")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized")
"""The last finds what the compiler's own headers for AVX-512 do on purpose."""
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def run(name: str, main: str, folder: Path, instructions: Sequence[str] = ("-march=native",)) -> str:
    """What a program prints that includes ``<name>.cpp`` and has this ``main``; any finding of a sanitizer fails."""
    source = folder / "main.cpp"
    source.write_text(f'#include "{SOURCES / name}.cpp"\n{main}\n')
    built = subprocess.run(
        [COMPILER, *FLAGS, *instructions, *WARNINGS, *SANITIZERS, str(source), "-o", str(folder / "main")],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find -lasan" in built.stderr or "libasan" in built.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(folder / "main")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
