import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from dither.errors import BadValue
from dither.evaluation.text import clip_score, clip_temp, clipsim, cosine


def embeddings(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_clip_score_is_a_hundredfold_cosine_that_is_never_negative():
    images, texts = np.array([[3.0, 0], [1, 1], [-1, 0], [0, 2]]), np.array([[1.0, 0], [1, 0], [1, 0], [1, 0]])
    np.testing.assert_allclose(clip_score(images, texts), [100, 100 / np.sqrt(2), 0, 0], atol=1e-12)


def test_cosines_equal_sklearns():
    a, b = embeddings(20, 8), embeddings(20, 8, seed=1)
    np.testing.assert_allclose(cosine(a, b), np.diag(cosine_similarity(a, b)), atol=1e-12)


def test_videos_are_means_over_frames():
    frames, texts = embeddings(3, 5, 8), embeddings(3, 8, seed=1)
    for i in range(3):
        expected = cosine_similarity(frames[i], texts[i : i + 1]).mean()
        assert clipsim(frames, texts)[i] == pytest.approx(expected)
        steps = [cosine_similarity(frames[i, f : f + 1], frames[i, f + 1 : f + 2]).item() for f in range(4)]
        assert clip_temp(frames)[i] == pytest.approx(np.mean(steps))


def test_a_still_video_of_its_text_scores_one():
    texts = embeddings(4, 8)
    still = np.repeat(texts[:, None], 6, axis=1)
    np.testing.assert_allclose(clipsim(still, texts), 1)
    np.testing.assert_allclose(clip_temp(still), 1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_blind_to_length_and_rotation(seed, scale):
    images, texts = embeddings(6, 5, seed=seed), embeddings(6, 5, seed=seed + 1)
    rotation = np.linalg.qr(embeddings(5, 5, seed=seed + 2))[0]
    base = clip_score(images, texts)
    np.testing.assert_allclose(clip_score(scale * images @ rotation, texts @ rotation), base, atol=1e-9)
    assert (base >= 0).all()
    assert (base <= 100 + 1e-9).all()


def test_refuses_what_cannot_be_compared():
    with pytest.raises(BadValue, match=r"one shape \(N, D\), got \(3, 4\) and \(3, 5\)"):
        clip_score(embeddings(3, 4), embeddings(3, 5))
    with pytest.raises(BadValue, match="CLIPSIM needs frames"):
        clipsim(embeddings(3, 2, 4), embeddings(2, 4))
    with pytest.raises(BadValue, match="F >= 2"):
        clip_temp(embeddings(3, 1, 4))
    with pytest.raises(BadValue, match="length 0"):
        clip_score(np.zeros((2, 3)), np.ones((2, 3)))
    with pytest.raises(BadValue, match="NaN"):
        clip_score(np.full((2, 3), np.nan), np.ones((2, 3)))
