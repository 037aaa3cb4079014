"""Feature extractors and scorers for measuring pictures, each behind one small protocol and under a name of its own.

The name says model and preprocessing, and is printed beside every number: features of different networks, or of one network
behind another resize, cannot be compared. Optional packages are imported when an extractor that needs them is opened.
"""

from dither.extractors.external import ExternalScores, open_image_reward, scores_from_command
from dither.extractors.extras import MissingExtra
from dither.extractors.inception import InceptionFeatures, open_inception
from dither.extractors.opening import EXTRACTORS, SCORERS, named, open_extractor, open_scorer
from dither.extractors.perceptual import Lpips, open_lpips
from dither.extractors.text import ClipScore, PromptScorer, open_clip_text
from dither.extractors.vision import ClipFeatures, Dinov2Features, open_clip, open_dinov2

__all__ = [
    "EXTRACTORS",
    "SCORERS",
    "ClipFeatures",
    "ClipScore",
    "Dinov2Features",
    "ExternalScores",
    "InceptionFeatures",
    "Lpips",
    "MissingExtra",
    "PromptScorer",
    "named",
    "open_clip",
    "open_clip_text",
    "open_dinov2",
    "open_extractor",
    "open_image_reward",
    "open_inception",
    "open_lpips",
    "open_scorer",
    "scores_from_command",
]
