"""Paired measurements of what quantization did to a sampler's pictures.

This package sees callables and plain torch modules only: it can judge any sampler, and no method can please it by
being known to it.
"""

from dither.evaluation.drift import DriftMeter
from dither.evaluation.gate import check, parse_condition
from dither.evaluation.intervals import bootstrap_mean_interval, t_interval
from dither.evaluation.layers import Call, LayerSnr, layer_snr
from dither.evaluation.paired import evaluate
from dither.evaluation.protocol import FeatureExtractor, RealStats, Sampler

__all__ = [
    "Call",
    "DriftMeter",
    "FeatureExtractor",
    "LayerSnr",
    "RealStats",
    "Sampler",
    "bootstrap_mean_interval",
    "check",
    "evaluate",
    "layer_snr",
    "parse_condition",
    "t_interval",
]
