"""How well pictures and videos fit their prompts, from embeddings that a CLIP model gave (arXiv 2103.00020).

    CLIPScore_i = 100 max(cos(image_i, text_i), 0)        (Hessel 2021, arXiv 2104.08718; there 2.5 stands for 100)
    CLIPSIM_i   = mean_f cos(frame_if, text_i)            (GODIVA, arXiv 2104.14806)
    CLIP-Temp_i = mean_f cos(frame_if, frame_i(f+1))

Values of two CLIP models cannot be compared, so a number is printed with its model. CLIPSIM here is of properly
normalised frames: published values near 0.2 partly come from frames of 0..255 that were not. All are one number per
prompt; intervals of paired differences are the caller's.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation.protocol import Float64

__all__ = ["clip_score", "clip_temp", "clipsim", "cosine"]


def clip_score(images: npt.NDArray[Any], texts: npt.NDArray[Any]) -> Float64:
    """CLIPScore (N,), 0 to 100, of image and text embeddings (N, D)."""
    if images.ndim != 2 or images.shape != texts.shape:
        raise BadValue(f"CLIPScore needs embeddings of one shape (N, D), got {images.shape} and {texts.shape}.")
    return np.asarray(100 * np.maximum(cosine(images, texts), 0), dtype=np.float64)


def clipsim(frames: npt.NDArray[Any], texts: npt.NDArray[Any]) -> Float64:
    """Mean cosine (N,) between the frames (N, F, D) of each video and its text (N, D)."""
    _check_frames(frames, "CLIPSIM", 1)
    if texts.ndim != 2 or (len(frames), frames.shape[2]) != texts.shape:
        raise BadValue(f"CLIPSIM needs frames (N, F, D) and texts (N, D), got {frames.shape} and {texts.shape}.")
    return np.asarray(cosine(frames, texts[:, None]).mean(axis=1), dtype=np.float64)


def clip_temp(frames: npt.NDArray[Any]) -> Float64:
    """Mean cosine (N,) between each frame of a video (N, F, D) and the next."""
    _check_frames(frames, "CLIP-Temp", 2)
    return np.asarray(cosine(frames[:, :-1], frames[:, 1:]).mean(axis=1), dtype=np.float64)


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Float64:
    """Cosine of the angle between vectors along the last axis, in float64."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise BadValue("embeddings contain NaN or infinite values.")
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    if not lengths.all():
        raise BadValue("an embedding of length 0 has no direction to compare.")
    return np.asarray(np.sum(x * y, axis=-1) / lengths, dtype=np.float64)


def _check_frames(frames: npt.NDArray[Any], metric: str, at_least: int) -> None:
    if frames.ndim != 3 or frames.shape[1] < at_least:
        raise BadValue(f"{metric} needs frames of shape (N, F >= {at_least}, D), got {frames.shape}.")
