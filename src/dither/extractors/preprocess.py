"""From uint8 pictures to what a feature network takes: the part on which published numbers differ most.

``Preprocess`` resizes as clean-fid (arXiv 2104.11222) and dgm-eval (arXiv 2306.04675) do: each channel is a float
picture that Pillow resizes with its antialiased bicubic filter, clipped to 0..255, with no rounding to bytes between;
then ``(x / 255 - mean) / std``. Grey pictures are repeated to three channels. Pictures that are not square are either
squeezed to a square (dgm-eval) or lose what lies outside their central square (CMMD's code).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dither.errors import BadValue
from dither.evaluation.protocol import Pictures

__all__ = ["CLIP_MEAN", "CLIP_STD", "IMAGENET_MEAN", "IMAGENET_STD", "Preprocess"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Floats = npt.NDArray[np.float32]
CHANNELS = (1, 3)


@dataclass(frozen=True)
class Preprocess:
    """Bicubic resize to ``size`` x ``size``, then normalisation by channel.

    Args:
        size: of the side that the network takes.
        mean, std: of red, green and blue, of values in 0..1.
        crop: keep the central square of a picture, rather than squeeze all of it into a square.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: bool

    @property
    def label(self) -> str:
        """Part of an extractor's name."""
        return f"{'crop' if self.crop else 'squeeze'}, bicubic {self.size}"

    def __call__(self, pictures: Pictures) -> Tensor:
        """Uint8 (N, H, W, C), C = 1 or 3, to float32 (N, 3, size, size)."""
        x = np.stack([self._resize(picture) for picture in pictures])  # (N, size, size, C)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        scaled = (as_rgb(x) / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))

    def _resize(self, picture: Pictures) -> Floats:
        """One picture (H, W, C) to (size, size, C), still in 0..255."""
        if self.crop:
            picture = _central_square(picture)
        channels = [
            Image.fromarray(np.ascontiguousarray(picture[..., c], np.float32)).resize(
                (self.size, self.size), Image.Resampling.BICUBIC
            )
            for c in range(picture.shape[-1])
        ]
        return np.stack([np.asarray(channel, np.float32) for channel in channels], axis=-1).clip(0, 255)


def as_rgb(pictures: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """(..., 1) repeated to (..., 3); three channels stay as they are."""
    return np.repeat(pictures, 3, axis=-1) if pictures.shape[-1] == 1 else pictures


def check_pictures(pictures: Pictures, name: str) -> None:
    """Raises BadValue, naming the extractor, unless these are uint8 (N, H, W, C) with N > 0 and C = 1 or 3."""
    if not isinstance(pictures, np.ndarray) or pictures.dtype != np.uint8:
        kind = pictures.dtype if isinstance(pictures, np.ndarray) else type(pictures).__name__
        raise BadValue(f"'{name}' takes uint8 pictures (N, H, W, C), not {kind}.")
    if pictures.ndim != 4 or 0 in pictures.shape or pictures.shape[-1] not in CHANNELS:
        raise BadValue(
            f"'{name}' takes uint8 pictures (N, H, W, C) of {' or '.join(map(str, CHANNELS))} channels, "
            f"not shape {pictures.shape}."
        )


def in_batches(
    pictures: Pictures, batch: int, name: str, run: Callable[[Pictures], tuple[Tensor, ...]]
) -> tuple[Floats, ...]:
    """What ``run`` makes of the pictures, ``batch`` at a time, joined along the first axis, as float32 on the CPU.

    Raises:
        BadValue: the pictures are none, or the results hold NaN or infinity.
    """
    check_pictures(pictures, name)
    with torch.no_grad():
        parts = [run(pictures[i : i + batch]) for i in range(0, len(pictures), batch)]
    joined = tuple(torch.cat(side).float().cpu().numpy() for side in zip(*parts, strict=True))
    for values in joined:
        if not np.isfinite(values).all():
            raise BadValue(f"Features '{name}' of {len(pictures)} pictures hold NaN or infinity.")
    return joined


def open_device(device: str) -> torch.device:
    """The torch device of that name.

    Raises:
        BadValue: there is none here.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadValue(f"Device {device!r} cannot be used here: {str(error).splitlines()[0]}.") from None
    return torch.device(device)


def _central_square(picture: Pictures) -> Pictures:
    """(H, W, C) to (S, S, C), S the shorter side; what is odd is lost at the end."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]
