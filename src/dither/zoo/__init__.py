"""Small trained diffusion transformers that ship with the project, so that everything else runs offline.

Each model is a diffusers pipeline folder under ``weights/``: a ``DiTTransformer2DModel``, a scheduler, a feature
network with the statistics of real test images, and ``provenance.json``. ``load("fashion")`` gives a ready pipeline;
``load("fashion-hard")`` the same function with synthetic channel outliers (see ``hard``).
"""

from dither.zoo.features import FeatureNetwork, RealStats, load_features
from dither.zoo.hard import Outliers, inject_outliers
from dither.zoo.pipeline import PixelDiTPipeline, register
from dither.zoo.registry import load, names, path

__all__ = [
    "FeatureNetwork",
    "Outliers",
    "PixelDiTPipeline",
    "RealStats",
    "inject_outliers",
    "load",
    "load_features",
    "names",
    "path",
    "register",
]
