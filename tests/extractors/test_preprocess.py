import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dither.errors import BadValue
from dither.extractors.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    Preprocess,
    as_rgb,
    check_pictures,
    in_batches,
    open_device,
)

PLAIN = Preprocess(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop=False)
CROP = Preprocess(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop=True)


def random_pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(h=st.integers(1, 30), w=st.integers(1, 30), c=st.sampled_from((1, 3)), crop=st.booleans())
def test_any_picture_becomes_three_square_channels_in_range(h, w, c, crop):
    x = Preprocess(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop)(random_pictures(2, h, w, c, seed=h * w))
    assert x.shape == (2, 3, 8, 8)
    assert x.dtype == torch.float32
    assert 0 <= x.min() <= x.max() <= 1


def test_no_resize_leaves_only_the_normalisation():
    pictures = random_pictures(3, 8, 8, 3)
    x = Preprocess(8, CLIP_MEAN, CLIP_STD, crop=True)(pictures)
    wanted = (pictures / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(x.permute(0, 2, 3, 1), wanted, atol=1e-5)


def test_resize_is_pillow_bicubic_within_the_rounding_that_pillow_does_on_bytes():
    pictures = random_pictures(1, 21, 21, 3)
    bytes_way = np.asarray(Image.fromarray(pictures[0]).resize((8, 8), Image.Resampling.BICUBIC), np.float64)
    ours = PLAIN(pictures)[0].permute(1, 2, 0).numpy() * 255
    assert 0 < abs(ours - bytes_way).max() <= 1.01  # Pillow rounds after each of its two passes


def test_resize_is_antialiased_where_plain_bicubic_is_not():
    lines = np.zeros((1, 64, 64, 1), np.uint8)
    lines[:, :, ::8] = 255  # between the columns that plain bicubic looks at
    plain = torch.nn.functional.interpolate(torch.from_numpy(lines[..., 0])[None].float() / 255, (8, 8), mode="bicubic")
    assert plain.mean() == 0
    assert PLAIN(lines).mean() == pytest.approx(1 / 8, abs=0.01)


def test_grey_is_the_same_picture_in_three_channels():
    grey = random_pictures(2, 13, 13, 1)
    torch.testing.assert_close(PLAIN(grey), PLAIN(np.repeat(grey, 3, axis=-1)), rtol=0, atol=0)
    assert as_rgb(grey).shape == (2, 13, 13, 3)


def test_crop_takes_the_central_square_and_squeeze_takes_all():
    wide = random_pictures(1, 10, 30, 3)
    torch.testing.assert_close(CROP(wide), CROP(wide[:, :, 10:20]), rtol=0, atol=0)
    assert not torch.equal(PLAIN(wide), CROP(wide))
    square = random_pictures(1, 11, 11, 3)
    assert torch.equal(PLAIN(square), CROP(square))


def test_what_is_done_is_in_the_label():
    assert (PLAIN.label, CROP.label) == ("squeeze, bicubic 8", "crop, bicubic 8")


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (random_pictures(2, 8, 8, 4), "(2, 8, 8, 4)"),
        (random_pictures(2, 8, 8, 2), "(2, 8, 8, 2)"),
        (random_pictures(8, 8, 3), "(8, 8, 3)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "(0, 8, 8, 3)"),
        (np.zeros((2, 0, 8, 3), np.uint8), "(2, 0, 8, 3)"),
        (np.zeros((2, 8, 8, 3)), "float64"),
        ([[1]], "list"),
    ],
)
def test_what_is_no_picture_is_named(bad, named):
    with pytest.raises(BadValue, match="'net'") as caught:
        check_pictures(bad, "net")
    assert named in str(caught.value)


def test_batches_are_joined_in_order():
    pictures = random_pictures(7, 4, 4, 1)
    seen = []

    def run(batch):
        seen.append(len(batch))
        flat = torch.from_numpy(batch.reshape(len(batch), -1))
        return flat.double(), flat[:, :1]

    both, first = in_batches(pictures, 3, "net", run)
    assert seen == [3, 3, 1]
    assert both.dtype == first.dtype == np.float32
    np.testing.assert_array_equal(both, pictures.reshape(7, -1))
    np.testing.assert_array_equal(first[:, 0], pictures[:, 0, 0, 0])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(poison):
    with pytest.raises(BadValue, match=r"'net'.*NaN or infinity"):
        in_batches(random_pictures(2, 4, 4, 1), 1, "net", lambda batch: (torch.full((1, 3), poison),))


@pytest.mark.parametrize("name", ["nowhere", "cuda:99", ""])
def test_a_device_that_is_not_here_is_named(name):
    with pytest.raises(BadValue, match="Device"):
        open_device(name)


def test_the_cpu_is_here():
    assert open_device("cpu") == torch.device("cpu")
