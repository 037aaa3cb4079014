"""What a peer is to the benchmark: a name, the package that it needs, and how it runs a float32 module."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TypeAlias

from torch import Tensor, nn

from benchmarks.cpu.run import Run

__all__ = ["Build", "Peer"]

Build: TypeAlias = Callable[[nn.Module, tuple[Tensor, ...]], Run]
"""A float32 module and inputs of it -> the same function by other means. It may raise whatever a library raises."""


@dataclass(frozen=True)
class Peer:
    """Another library's way to run a module.

    Args:
        name: in tables.
        packages: distributions that it needs; their versions are recorded.
        how: what is asked of the library, for the tables.
        build: does it, importing the library.
    """

    name: str
    packages: tuple[str, ...]
    how: str
    build: Build

    def versions(self) -> dict[str, str]:
        """Of its packages, as far as they are installed."""
        found = {}
        for package in self.packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found
