import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio
from sklearn.metrics.pairwise import cosine_similarity

from dither.errors import BadValue
from dither.evaluation import frechet
from dither.evaluation.image import mean_squared_error, psnr, ssim
from dither.evaluation.judge import Judge
from dither.evaluation.video import (
    FrameMean,
    Videos,
    consistency,
    film_strips,
    flicker,
    frame_errors,
    frame_features,
    frame_psnr,
    frame_ssim,
    read_vbench,
    video_frechet,
)


def videos(n: int = 3, frames: int = 4, seed: int = 0, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, frames, size, size, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Colours:
    """Mean and spread of each channel: features that need no network."""

    name: str = "colours"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, None]:
        x = images.astype(np.float64).reshape(len(images), -1, images.shape[-1])
        return np.concatenate([x.mean(axis=1), x.std(axis=1)], axis=1), None


@dataclass(frozen=True)
class Motion:
    """Sees the order of frames, as a video network does."""

    name: str = "motion"

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        steps = np.diff(clips.astype(np.float64), axis=1).reshape(len(clips), -1, clips.shape[-1])
        return np.asarray(np.abs(steps).mean(axis=1))


def test_flicker_is_vbenchs_formula():
    x = videos()
    expected = []
    for video in x.astype(float):
        steps = [np.abs(video[f + 1] - video[f]).mean() for f in range(3)]
        expected.append((255 - np.mean(steps)) / 255)
    np.testing.assert_allclose(flicker(x), expected, rtol=1e-12)


def test_a_still_video_does_not_flicker_and_a_strobe_does():
    still, strobe = np.zeros((1, 4, 8, 8, 3), np.uint8), np.zeros((1, 4, 8, 8, 3), np.uint8)
    strobe[:, 1::2] = 255
    assert flicker(still) == [1]
    assert flicker(strobe) == [0]
    np.testing.assert_array_equal(flicker(strobe[:, ::-1]), flicker(strobe))


def test_frames_are_compared_with_the_same_frames():
    full = videos()
    quantized = full.copy()
    quantized[1, 2] //= 2
    psnr, ssim = frame_psnr(quantized, full), frame_ssim(quantized, full)
    assert psnr.shape == ssim.shape == (3, 4)
    assert psnr[1, 2] == pytest.approx(peak_signal_noise_ratio(full[1, 2], quantized[1, 2]))
    others = np.ones((3, 4), bool)
    others[1, 2] = False
    assert (psnr[others] == 60).all()
    np.testing.assert_allclose(ssim[others], 1)
    assert ssim[1, 2] < 0.95


@pytest.mark.parametrize("chunk", [1, 1000, 10**6])
def test_frames_may_be_looked_at_a_few_at_a_time(monkeypatch, chunk):
    full, quantized = videos(), videos(seed=1)
    monkeypatch.setattr("dither.evaluation.video.CHUNK_BYTES", chunk)
    for found, metric in ((frame_errors, mean_squared_error), (frame_ssim, ssim)):
        expected = [metric(a, b) for a, b in zip(quantized, full, strict=True)]
        np.testing.assert_allclose(found(quantized, full), expected, rtol=1e-12)


def test_a_strip_shows_frames_from_the_first_to_the_last():
    x = np.full((2, 9, 4, 6, 3), np.arange(9, dtype=np.uint8)[:, None, None, None])
    strips = film_strips(x)
    assert strips.shape == (2, 4, 5 * 6 + 4 * 2, 3)
    assert strips[0, 0, ::8, 0].tolist() == [0, 2, 4, 6, 8]
    assert (strips[:, :, 6:8] == 255).all()
    assert film_strips(x[:, :2])[1, 0, ::8, 0].tolist() == [0, 1]


def test_wide_strips_are_made_smaller_by_means_of_squares():
    x = np.random.default_rng(0).integers(0, 256, (1, 2, 9, 1800, 1), dtype=np.uint8)
    strip = film_strips(x)  # by 3: 3600 pixels in all
    assert strip.shape == (1, 3, 600 + 2 + 600, 1)
    assert strip[0, 1, 1, 0] == round(x[0, 0, 3:6, 3:6, 0].mean())
    assert film_strips(x[:, :, :2]).shape == (1, 1, 900 + 2 + 900, 1)  # never below one pixel


def test_a_judge_of_videos_counts_videos_and_shows_the_worst():
    full = videos(40, 3)
    quantized = full.copy()
    quantized[:, 1] //= 2
    quantized[7] = 255 - quantized[7]
    judge = Judge(show=3, floor=0, medium=Videos())
    for rows in (range(25), range(25, 40)):
        judge.add(rows, [0] * len(rows), rows, full[rows], quantized[rows])
    results = judge.results()
    expected = psnr(frame_errors(quantized, full)).mean(axis=1)
    np.testing.assert_allclose(judge.psnr(), expected)
    np.testing.assert_allclose(judge.ssim(), frame_ssim(quantized, full).mean(axis=1))
    assert (results["n"], results["psnr_db"]["identical"]) == (40, 0)
    assert results["psnr_db"]["mean"] == pytest.approx(expected.mean())
    low, high = results["psnr_db"]["ci95"]
    assert low < expected.mean() < high
    assert [(entry["index"], entry["worst"]) for entry in results["images"]] == [(0, False), (1, False), (7, True)]
    with pytest.raises(BadValue, match=r"quantized videos .* where uint8 \(2, F, H, W, C\)"):
        judge.add(range(2), [0, 0], range(2), full[:2], full[:2, 0])


def test_consistency_is_vbenchs_formula():
    features = np.random.default_rng(0).normal(size=(3, 5, 6)) + 0.3
    expected = []
    for video in features:
        cosines = cosine_similarity(video)
        frames = [(max(0, cosines[f, 0]) + max(0, cosines[f, f - 1])) / 2 for f in range(1, 5)]
        expected.append(np.mean(frames))
    np.testing.assert_allclose(consistency(features), expected)


def test_consistency_of_a_still_video_is_one_and_never_negative():
    frame = np.random.default_rng(0).normal(size=(1, 1, 6))
    assert consistency(np.repeat(frame, 4, axis=1)) == pytest.approx(1)
    assert consistency(np.concatenate([frame, -frame, frame], axis=1)) == pytest.approx((0 + (1 + 0) / 2) / 2)


def test_features_come_frame_by_frame():
    x = videos()
    features = frame_features(x, Colours())
    assert features.shape == (3, 4, 6)
    np.testing.assert_array_equal(features[1], Colours()(x[1])[0])


def test_a_mean_over_frames_says_that_it_is_not_fvd():
    x = videos()
    mean = FrameMean(Colours())
    assert mean.name == "colours, mean over frames (not FVD)"
    np.testing.assert_allclose(mean(x), frame_features(x, Colours()).mean(axis=1))


def test_only_a_video_extractor_sees_motion():
    full = np.sort(videos(60, 4, size=4), axis=1)
    shuffled = full[:, [1, 3, 0, 2]]
    blind, sees = video_frechet(shuffled, full, FrameMean(Colours())), video_frechet(shuffled, full, Motion())
    assert blind.value == pytest.approx(0, abs=1e-6)
    a, b = frechet.fit_gaussian(Motion()(shuffled)), frechet.fit_gaussian(Motion()(full))
    assert sees.value == pytest.approx(frechet.frechet_distance(*a, *b))
    assert sees.value > 10 * sees.se > 0
    assert (sees.features, sees.n) == ("motion", 60)


def test_refuses_what_is_not_videos():
    with pytest.raises(BadValue, match="uint8"):
        flicker(videos().astype(np.float32))
    with pytest.raises(BadValue, match="F >= 2"):
        flicker(videos(frames=1))
    with pytest.raises(BadValue, match="cannot be compared"):
        frame_psnr(videos(frames=3), videos(frames=4))
    with pytest.raises(BadValue, match="F >= 2"):
        consistency(np.ones((2, 1, 4)))


def vbench(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "eval_results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reads_what_vbench_writes(tmp_path):
    per_video = [{"video_path": "a.mp4", "video_results": 0.9}, {"video_path": "b.mp4", "video_results": 0.98}]
    path = vbench(
        tmp_path, {"subject_consistency": [0.94, per_video], "imaging_quality": 71, "dynamic_degree": [0, []]}
    )
    assert read_vbench(path) == {"subject_consistency": 0.94, "imaging_quality": 71.0, "dynamic_degree": 0.0}


JUNK: Sequence[tuple[object, str]] = [
    ("", "not a JSON result of VBench"),
    ("{", "not a JSON result of VBench"),
    ("[" * 100_000, "not a JSON result of VBench"),
    ("[]", "holds no dimensions"),
    ({}, "holds no dimensions"),
    ({"made_up": [1.0, []]}, "'made_up', which is not a dimension"),
    ({"scene": "good"}, "no number for 'scene'"),
    ({"scene": []}, "no number for 'scene'"),
    ({"scene": [True, []]}, "no number for 'scene'"),
    ({"scene": None}, "no number for 'scene'"),
    ('{"scene": [NaN, []]}', "NaN is not a number"),
    ('{"scene": [1e999, []]}', "too large"),
    ('{"scene": [1' + "0" * 400 + ", []]}", "too large"),
    ('{"scene": 1, "scene": 2}', "twice"),
]


@pytest.mark.parametrize(("content", "sentence"), JUNK)
def test_refuses_junk_for_results_of_vbench(tmp_path, content, sentence):
    with pytest.raises(BadValue, match=sentence):
        read_vbench(vbench(tmp_path, content))


def test_names_a_result_that_cannot_be_read(tmp_path):
    with pytest.raises(BadValue, match=r"none\.json: No such file"):
        read_vbench(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(BadValue, match=r"bytes\.json is not a JSON result"):
        read_vbench(tmp_path / "bytes.json")
