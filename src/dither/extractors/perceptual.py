"""LPIPS, the learned perceptual distance of two pictures (arXiv 1801.03924), through the lpips package (extra ``lpips``).

Pictures are scaled to [-1, 1] and not resized, grey ones repeated to three channels; version 0.1 of the calibrated heads.
Numbers of different nets cannot be compared: ``alex`` is what is reported most, ``vgg`` what some papers use. AlexNet's or
VGG's weights are downloaded once by torchvision.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dither.errors import BadModel, BadValue
from dither.evaluation.protocol import Float64, Pictures
from dither.extractors.extras import import_extra
from dither.extractors.hub import first_line
from dither.extractors.preprocess import as_rgb, check_pictures, open_device

__all__ = ["Lpips", "open_lpips"]

SMALLEST = {"alex": 31, "vgg": 16}
"""Net -> the shortest side that survives its pooling."""


@dataclass(frozen=True)
class Lpips:
    """Distance of each pair of pictures; 0 for equal pictures."""

    network: nn.Module
    net: str
    device: torch.device
    batch: int = 32

    @property
    def name(self) -> str:
        """Printed beside each number."""
        return f"lpips:{self.net}"

    def __call__(self, first: Pictures, second: Pictures) -> Float64:
        """Two arrays of uint8 pictures (N, H, W, C) to their distances (N,).

        Raises:
            BadValue: the shapes differ, or the pictures are smaller than the net's pooling allows.
        """
        for pictures in (first, second):
            check_pictures(pictures, self.name)
        if first.shape != second.shape:
            raise BadValue(f"'{self.name}' compares pictures of one shape, not {first.shape} with {second.shape}.")
        height, width = first.shape[1:3]
        if min(height, width) < SMALLEST[self.net]:
            raise BadValue(
                f"'{self.name}' needs at least {SMALLEST[self.net]} pixels a side, and the pictures have "
                f"{height} x {width}."
            )
        slices = [slice(i, i + self.batch) for i in range(0, len(first), self.batch)]
        with torch.no_grad():
            parts = [self.network(self._tensor(first[s]), self._tensor(second[s])).flatten() for s in slices]
        distances: Float64 = torch.cat(parts).cpu().numpy().astype(np.float64)  # (N,)
        if not np.isfinite(distances).all():
            raise BadValue(f"'{self.name}' of {len(first)} pairs of pictures holds NaN or infinity.")
        return distances

    def _tensor(self, pictures: Pictures) -> Tensor:
        """Uint8 (N, H, W, C) to float32 (N, 3, H, W) in [-1, 1]."""
        x = torch.from_numpy(np.ascontiguousarray(as_rgb(pictures).transpose(0, 3, 1, 2)))
        return x.to(self.device).float() / 127.5 - 1


def open_lpips(net: str = "alex", device: str = "cpu", batch: int = 32) -> Lpips:
    """LPIPS with the net ``alex`` or ``vgg``.

    Raises:
        MissingExtra: lpips or a working torchvision is absent.
        BadValue: unknown net, or no such device.
        BadModel: the net's weights cannot be downloaded.
    """
    if net not in SMALLEST:
        raise BadValue(f"There is no LPIPS net {net[:200]!r}: choose {' or '.join(SMALLEST)}.")
    lpips = import_extra("lpips", package="lpips", extra="lpips", what="LPIPS")
    where = open_device(device)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)  # lpips calls torchvision in its old way
            network = lpips.LPIPS(net=net, verbose=False)
    except (OSError, RuntimeError) as error:
        raise BadModel(f"lpips: the weights of the net '{net}' cannot be loaded: {first_line(error)}") from None
    return Lpips(network.eval().requires_grad_(False).to(where), net, where, batch)
