import base64
import io

import numpy as np
import pytest
from PIL import Image
from skimage import metrics

from dither.errors import BadValue
from dither.evaluation import image


def pictures(
    n: int, side: int, channels: int, seed: int = 0, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (n, side, width or side, channels), dtype=np.uint8)
    b = np.clip(a.astype(int) + rng.integers(-40, 41, a.shape), 0, 255).astype(np.uint8)
    return a, b


@pytest.mark.parametrize("shape", [(8, 1), (28, 1), (32, 3)])
def test_psnr_equals_skimage(shape):
    a, b = pictures(4, *shape)
    expected = [metrics.peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(image.psnr(image.mean_squared_error(a, b)), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(11, 1, 11), (28, 1, 28), (32, 3, 19)])
def test_ssim_equals_skimage(shape):
    side, channels, width = shape
    a, b = pictures(3, side, channels, width=width)
    expected = [
        metrics.structural_similarity(
            x, y, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(image.ssim(a, b), expected, atol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 5, 8, 10])
def test_ssim_of_small_pictures_is_defined(side):
    a, b = pictures(5, side, 1)
    similarity = image.ssim(a, b)
    assert np.isfinite(similarity).all()
    assert (similarity < 1).all()
    np.testing.assert_allclose(image.ssim(a, a), 1, atol=1e-12)


def test_small_window_is_the_largest_odd_one_that_fits():
    assert [len(image._window(side)) for side in (1, 2, 7, 8, 10, 11, 28)] == [1, 1, 7, 7, 9, 11, 11]


def test_identical_pictures_have_60_db():
    a, _ = pictures(2, 8, 1)
    assert image.psnr(image.mean_squared_error(a, a)).tolist() == [60.0, 60.0]


def test_pooled_psnr_is_below_the_mean_when_one_picture_is_bad():
    mse = np.array([1.0, 1.0, 1.0, 5000.0])
    assert image.psnr(mse.mean()) < image.psnr(mse).mean() - 10


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_uri_keeps_every_pixel(channels):
    a, _ = pictures(1, 9, channels)
    uri = image.png_data_uri(a[0])
    payload = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    back = np.asarray(Image.open(io.BytesIO(payload))).reshape(a[0].shape)
    np.testing.assert_array_equal(back, a[0])


def test_bad_pictures_are_named():
    nan = np.full((2, 4, 4, 1), np.nan)
    with pytest.raises(BadValue, match="quantized pictures contain NaN"):
        image.check_pictures(nan, 2, "quantized")
    with pytest.raises(BadValue, match="float64"):
        image.check_pictures(np.zeros((2, 4, 4, 1)), 2, "quantized")
    with pytest.raises(BadValue, match=r"\(2, 4, 4, 2\)"):
        image.check_pictures(np.zeros((2, 4, 4, 2), np.uint8), 2, "quantized")
    with pytest.raises(BadValue, match="cannot be compared"):
        image.ssim(np.zeros((2, 8, 8, 1), np.uint8), np.zeros((2, 8, 8, 3), np.uint8))
