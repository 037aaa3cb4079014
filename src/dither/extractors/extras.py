"""Optional packages, imported where they are used, with one sentence for each way in which they can be absent.

``torchvision`` is the usual culprit: the wheel of the package index is built for CUDA and does not import beside
CPU-only torch, which takes everything down that imports it. So nothing here imports it, and what does import it
(torch-fidelity, lpips) is imported inside ``import_extra``.
"""

import importlib
from typing import Any

from dither.errors import DitherError

__all__ = ["MissingExtra", "import_extra", "transformers_class"]

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
REPAIR = (
    "with a torchvision built for the installed torch "
    f"(CPU-only: pip install --force-reinstall --no-deps torchvision --index-url {CPU_INDEX})"
)


class MissingExtra(DitherError):
    """A measurement needs an optional package that is absent or does not import."""


def import_extra(module: str, *, package: str, extra: str, what: str) -> Any:
    """Imports ``module`` of ``package``, which the extra ``dither[extra]`` installs.

    Args:
        module: dotted name.
        package: its name for pip.
        extra: of dither.
        what: needs it; the first words of the sentence.

    Raises:
        MissingExtra: it is not installed, or it or torchvision fails while importing.
    """
    install = f"pip install 'dither[{extra}]'"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == module.split(".", maxsplit=1)[0]:
            raise MissingExtra(
                f"{what} needs {package}: {install} "
                f"(with CPU-only torch also: pip install torchvision --index-url {CPU_INDEX})."
            ) from None
        reason = f"{error.name} is missing"
    except Exception as error:  # a torchvision built for another torch raises anything
        reason = _root(error)
    raise MissingExtra(f"{what} needs {package}, which does not import ({reason}): {install}, {REPAIR}.")


def transformers_class(name: str, what: str) -> Any:
    """A class of transformers, which needs no torchvision but cannot live with a broken one.

    Raises:
        MissingExtra: it does not import.
    """
    try:
        return getattr(importlib.import_module("transformers"), name)
    except Exception as error:  # as above
        reason = _root(error)
    raise MissingExtra(
        f"{what} needs {name} of transformers, which does not import ({reason}): uninstall torchvision, or go on {REPAIR}."
    )


def _root(error: BaseException) -> str:
    """Kind and first line of the error that began it, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"
