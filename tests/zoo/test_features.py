"""Feature networks: they recognise what the models draw, and their stored statistics are those of real images."""

import numpy as np
import pytest
import torch

from dither import zoo


def draw(name: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, H, W, C) and their labels (N,)."""
    pipe = zoo.load(name)
    pipe.set_progress_bar_config(disable=True)
    labels = np.arange(10).repeat(per_class)
    generators = [torch.Generator().manual_seed(i) for i in range(len(labels))]
    images = pipe(labels.tolist(), generator=generators, num_inference_steps=12, output_type="np").images
    return (images * 255).round().astype(np.uint8), labels


@pytest.mark.parametrize(("name", "per_class"), [("digits", 8), ("fashion", 3)])
def test_generated_images_are_recognised(name: str, per_class: int) -> None:
    images, labels = draw(name, per_class)
    network, _ = zoo.load_features(name)
    _, logits = network(images)
    assert (logits.argmax(1) == labels).mean() > 0.75  # chance is 0.1
    _, noise = network(np.random.default_rng(0).integers(0, 256, images.shape, np.uint8))
    assert (noise.argmax(1) == labels).mean() < 0.4


@pytest.mark.parametrize(("name", "at_least"), [("digits", 0.95), ("fashion", 0.91)])
def test_statistics_are_sound(name: str, at_least: float) -> None:
    network, real = zoo.load_features(name)
    d = network.module.to_features.out_features
    assert real.mu.shape == (d,)
    assert real.sigma.shape == (d, d)
    assert real.mu.dtype == real.sigma.dtype == np.float64
    assert np.linalg.eigvalsh(real.sigma).min() > -1e-9
    assert at_least <= real.accuracy <= 1
    assert real.n > d


def test_statistics_match_the_real_test_images_of_digits() -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    held_out = np.arange(len(bunch.images)) % 5 == 4
    images = np.rint(bunch.images[held_out] / 16 * 255).astype(np.uint8)[..., None]
    network, real = zoo.load_features("digits")
    features, logits = network(images)
    assert len(images) == real.n
    assert (logits.argmax(1) == bunch.target[held_out]).mean() == pytest.approx(real.accuracy)
    np.testing.assert_allclose(features.mean(0), real.mu, atol=1e-4)
    np.testing.assert_allclose(np.cov(features, rowvar=False), real.sigma, atol=1e-3)


def test_batches_do_not_change_the_result() -> None:
    network, _ = zoo.load_features("digits")
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), np.uint8)
    whole, parts = network(images), network(images, batch=3)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_hard_model_shares_its_features() -> None:
    np.testing.assert_array_equal(zoo.load_features("digits-hard")[1].mu, zoo.load_features("digits")[1].mu)
