"""Names of the shipped models, their folders, and loading.

A name is a folder under ``weights/``; ``NAME-hard`` is the same folder with outliers injected after loading, so it
costs no bytes. Users write ``zoo:NAME``; the prefix is taken off before it comes here.
"""

from pathlib import Path

from dither.errors import BadModel
from dither.zoo.hard import Outliers, inject_outliers
from dither.zoo.pipeline import PixelDiTPipeline

HARD = "-hard"


def names() -> tuple[str, ...]:
    """The shipped models in alphabetical order; each exists as ``NAME-hard`` too."""
    return tuple(sorted(folder.parent.name for folder in _weights().glob("*/model_index.json")))


def path(name: str) -> Path:
    """The pipeline folder of ``name``. ``NAME-hard`` is derived from NAME's folder and shares its feature network.

    Raises:
        BadModel: no such model; the sentence lists those that exist.
    """
    base = name.removesuffix(HARD)
    if base not in names():
        raise BadModel(f"There is no zoo model {name!r}: the zoo has {', '.join(names())}, and each as NAME{HARD}.")
    return _weights() / base


def load(name: str) -> PixelDiTPipeline:
    """The pipeline ``name`` on the CPU in float32, ready to sample.

    Raises:
        BadModel: no such model; the sentence lists those that exist.
    """
    pipe: PixelDiTPipeline = PixelDiTPipeline.from_pretrained(path(name))
    pipe.transformer.float().eval()  # stored in float16
    if name.endswith(HARD):
        inject_outliers(pipe.transformer, Outliers())
    return pipe


def _weights() -> Path:
    return Path(__file__).parent / "weights"
