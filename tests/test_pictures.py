import numpy as np
import pytest
import torch

from dither.errors import BadValue
from dither.pictures import grid, save_npz, show_latents


def test_latents_are_shown_on_a_fixed_range():
    latents = torch.zeros(1, 4, 1, 3)
    latents[0, 0, 0] = torch.tensor([-4.0, 0.0, 9.0])
    shown = show_latents(latents)
    assert shown[0, 0, :, 0].tolist() == [0, 128, 255]
    assert shown[0, 0, :, 1].tolist() == [128, 128, 128]
    assert show_latents(torch.zeros(2, 2, 4, 4)).shape == (2, 4, 4, 3)


def test_grid():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8) * 40
    picture = grid(images, 3)
    assert picture.size == (3 * 96 + 4, 2 * 96 + 2)
    pixels = np.asarray(picture)
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[-1, 98].tolist() == [160, 160, 160]
    assert pixels[0, 96].tolist() == [255, 255, 255]  # the gap
    assert pixels[-1, -1].tolist() == [255, 255, 255]  # no sixth picture
    assert grid(np.zeros((2, 200, 100, 3), np.uint8), 8).size == (202, 200)
    with pytest.raises(BadValue, match="grid"):
        grid(images[0], 3)


def test_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / "out.npz"
    save_npz(path, images, [4, 5, 6], [0, 1, 2])
    with np.load(path, allow_pickle=False) as saved:
        assert set(saved) == {"arr_0", "arr_1", "seeds"}
        assert np.array_equal(saved["arr_0"], images)
        assert saved["arr_1"].tolist() == [4, 5, 6]
        assert saved["seeds"].tolist() == [0, 1, 2]
    save_npz(path, images, ["a cat", "b", "c"], [0, 1, 2])
    with np.load(path, allow_pickle=False) as saved:
        assert saved["arr_1"].tolist() == ["a cat", "b", "c"]
    videos = images[:, None].repeat(2, axis=1)
    save_npz(path, videos, ["a cat", "b", "c"], [0, 1, 2], {"steps": 4})
    with np.load(path, allow_pickle=False) as saved:
        assert np.array_equal(saved["arr_0"], videos)
        assert saved["settings"].item() == '{"steps": 4}'
    with pytest.raises(BadValue, match="folder"):
        save_npz(tmp_path / "no" / "out.npz", images, [4, 5, 6], [0, 1, 2])
    with pytest.raises(BadValue, match="2 labels"):
        save_npz(path, images, [4, 5], [0, 1, 2])
