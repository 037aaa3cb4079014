"""Native code: compiled on first use with the machine's own compiler, kept in a cache, loaded with ctypes.

    <cache>/dither/native/<name>-<key>.so        key: sources, flags, compiler, and what the CPU can do

The functions have a C interface and know nothing of torch, so that one file serves every version of it. A library is made
under another name and then renamed, so that two processes may build it at once. Whatever goes wrong (no compiler, a broken
one, a cache that others can write to) is said in one line, and torch does the work: slower, with the same result.

``DITHER_NATIVE=off`` does without, and ``avx2`` or ``avx512`` without what newer CPUs have; ``DITHER_CACHE`` names another
cache; ``CXX`` another compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

__all__ = ["cache_folder", "library"]

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", "-fvisibility=default")
INSTRUCTIONS = {
    "": ("", ("-march=native",)),
    "avx2": ("avx2", ("-march=x86-64-v3",)),
    "avx512": ("avx512_vnni", ("-march=x86-64-v4", "-mavx512vnni")),
}
"""By ``DITHER_NATIVE``: what the CPU must have, and flags."""
SLOWEST = 120
"""Seconds that a compiler may take."""
_log = logging.getLogger("dither")


class _Unavailable(Exception):
    """Why there is no library."""


@lru_cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled ``<name>.cpp`` of this folder, or None where it cannot be had, which is logged once."""
    asked = os.environ.get("DITHER_NATIVE", "").lower()
    if asked in ("off", "0"):
        return None
    try:
        return ctypes.CDLL(str(_built(name, _flags(asked))))
    except (_Unavailable, OSError) as e:
        _log.warning("no native code for '%s', torch does its work more slowly: %s", name, e)
        return None


def cache_folder() -> Path:
    """Where libraries are kept."""
    own = os.environ.get("DITHER_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "dither" / "native"


def _flags(asked: str) -> tuple[str, ...]:
    if asked not in INSTRUCTIONS:
        raise _Unavailable(
            f"DITHER_NATIVE is '{asked}', and may be off, {', '.join(filter(None, INSTRUCTIONS))} or empty"
        )
    needs, own = INSTRUCTIONS[asked]
    if needs and needs not in _cpu().split():
        raise _Unavailable(f"DITHER_NATIVE is '{asked}', and this CPU has no {needs}")
    return (*FLAGS, *own)


def _built(name: str, flags: tuple[str, ...]) -> Path:
    if os.name != "posix":
        raise _Unavailable(f"it is not built on {platform.system()}")
    source = Path(__file__).parent / f"{name}.cpp"
    compiler = _compiler()
    folder = cache_folder()
    target = folder / f"{name}-{_key(source, compiler, flags)}.so"
    _own(folder)
    if target.is_file():
        return target
    handle, part = tempfile.mkstemp(prefix=f"{name}-", suffix=".part", dir=folder)
    os.close(handle)
    try:
        _run([*compiler, *flags, str(source), "-o", part])
        os.replace(part, target)
    finally:
        Path(part).unlink(missing_ok=True)
    return target


def _compiler() -> list[str]:
    """Its command."""
    if asked := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(asked[0]) is None:
            raise _Unavailable(f"CXX names '{asked[0]}', which is not there")
        return asked
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found is None:
        raise _Unavailable("there is no C++ compiler")
    return [found]


def _key(source: Path, compiler: list[str], flags: tuple[str, ...]) -> str:
    """What the library depends on. A compiler is known by its file: asking it for its version would take longer."""
    file = Path(shutil.which(compiler[0]) or compiler[0]).resolve()
    state = file.stat()
    sources = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = (*sources, *compiler, *flags, str(file), str(state.st_size), str(state.st_mtime_ns), _cpu())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _cpu() -> str:
    """What it can do, as ``-march=native`` sees it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = [line for line in dict.fromkeys(lines) if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), *told])


def _own(folder: Path) -> None:
    """Make sure that nobody else can put a library there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
    except OSError as e:
        raise _Unavailable(f"the cache '{folder}' cannot be made: {e.strerror}") from None
    if state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Unavailable(f"the cache '{folder}' can be written by others: set DITHER_CACHE")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SLOWEST, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise _Unavailable(f"the compiler '{command[0]}' does not run: {e}") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
        raise _Unavailable(f"the compiler '{command[0]}' ended with {done.returncode}: {said}")
