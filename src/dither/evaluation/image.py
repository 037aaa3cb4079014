"""Distances between two pictures: PSNR and SSIM, per image, on uint8.

PSNR_i = 10 log10(255^2 / mse_i), clipped at 60 dB: rounding to 8 bits alone leaves about 59 dB, and an identical pair
has no finite value. The mean over images of PSNR_i is the number the field reports; the *pooled* PSNR of the mean
mse is lower, and much lower when few pictures are far worse than the rest. Both are given.

SSIM (Wang et al. 2004): Gaussian window of 11x11, sigma 1.5, K = (0.01, 0.03), population covariance, averaged over
the region where the window fits whole and over channels. A picture with a side below 11 gets the largest odd window
that fits, with the same sigma: an 8x8 digit is compared through a 7x7 window. Such values are comparable with each
other and not with those of larger pictures.
"""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dither.errors import BadValue
from dither.evaluation.protocol import Float64, Pictures

__all__ = ["PSNR_CLIP_DB", "check_pair", "check_pictures", "mean_squared_error", "png_data_uri", "psnr", "ssim"]

PSNR_CLIP_DB = 60.0
WINDOW = 11
SIGMA = 1.5


def check_pictures(pictures: npt.NDArray[Any], count: int, whose: str) -> None:
    """Raise BadValue unless `pictures` is uint8 (count, H, W, C) with 1, 3 or 4 channels."""
    if np.issubdtype(pictures.dtype, np.floating) and not np.isfinite(pictures).all():
        raise BadValue(f"{whose} pictures contain NaN or infinite values.")
    if pictures.dtype != np.uint8:
        raise BadValue(f"{whose} pictures have dtype {pictures.dtype} where uint8 is needed.")
    if pictures.ndim != 4 or pictures.shape[0] != count or pictures.shape[3] not in (1, 3, 4):
        raise BadValue(f"{whose} pictures have shape {pictures.shape} where ({count}, H, W, 1, 3 or 4) is needed.")


def check_pair(a: Pictures, b: Pictures) -> None:
    """Raise BadValue unless both are of one shape."""
    if a.shape != b.shape:
        raise BadValue(f"pictures of shape {a.shape} and {b.shape} cannot be compared.")


def mean_squared_error(a: Pictures, b: Pictures) -> Float64:
    """Mean squared difference of each pair (N,), in units of squared 8-bit levels."""
    check_pair(a, b)
    difference = a.astype(np.int32) - b.astype(np.int32)
    return np.asarray(np.square(difference).reshape(len(a), -1).mean(axis=1), dtype=np.float64)


def psnr(mse: Float64) -> Float64:
    """PSNR in dB of each mean squared error, at most 60."""
    with np.errstate(divide="ignore"):
        return np.minimum(10.0 * np.log10(255.0**2 / np.asarray(mse, dtype=np.float64)), PSNR_CLIP_DB)


def ssim(a: Pictures, b: Pictures) -> Float64:
    """Structural similarity of each pair (N,), between -1 and 1."""
    check_pair(a, b)
    x, y = _planes(a), _planes(b)  # (N*C, 1, H, W)
    window = _window(min(a.shape[1:3]))

    def blur(z: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(torch.conv2d(z, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return np.asarray(similarity.reshape(len(a), -1).mean(dim=1).numpy(), dtype=np.float64)


def _planes(pictures: Pictures) -> torch.Tensor:
    n, h, w, c = pictures.shape
    channels_first = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first).double().reshape(n * c, 1, h, w)


def _window(side: int) -> torch.Tensor:
    """One axis of the Gaussian window, the largest odd size of at most 11 that fits into `side`."""
    size = min(WINDOW, side if side % 2 else side - 1)
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(offset**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def png_data_uri(picture: Pictures) -> str:
    """One picture (H, W, C) as `data:image/png;base64,...`, without loss."""
    plain = picture[:, :, 0] if picture.shape[2] == 1 else picture
    buffer = io.BytesIO()
    Image.fromarray(plain).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
