"""Files of videos go the same way as files of pictures, through the same judge."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dither.errors import BadValue
from dither.evaluation.admfile import write_npz
from dither.evaluation.text import clip_temp, clipsim
from dither.evaluation.video import consistency, flicker, frame_psnr, frame_ssim
from dither.extractors import ClipScore, named
from dither.measure import Asked
from dither.measure.export import to_csv, to_markdown
from dither.measure.samples import compare_samples
from dither.report import render

RNG = np.random.default_rng(0)
N, FRAMES = 20, 4
FULL = RNG.integers(0, 256, (N, FRAMES, 16, 12, 3), dtype=np.uint8)
PROMPTS = [f"a {letter}" for letter in "abcdefghijklmnopqrst"]


def near(amount):
    return np.clip(FULL.astype(int) + RNG.integers(-amount, amount + 1, FULL.shape), 0, 255).astype(np.uint8)


def save(path, videos, labels=PROMPTS):
    write_npz(path, [videos], len(videos), videos.shape[1:], labels, range(len(videos)))
    return str(path)


def colours(pictures):
    """Features that need no network."""
    x = pictures.reshape(len(pictures), -1, 3).astype(np.float64)
    return np.concatenate([x.mean(axis=1), x.std(axis=1)], axis=1)


@dataclass
class Seen:
    """Counts the frames that a network looked at."""

    frames: int = 0

    def __call__(self, pictures):
        self.frames += len(pictures)
        return colours(pictures), None


class TinyClip(ClipScore):
    def embed_pictures(self, pictures):
        return colours(pictures).astype(np.float32)

    def embed_prompts(self, prompts):
        return np.array([[len(p), ord(p[-1]), 1, 2, 3, 4] for p in prompts], np.float32)


@pytest.fixture
def networks(monkeypatch):
    """Any extractor and scorer that is named, without weights; how many frames each extractor saw, by its name."""
    seen = {}

    def extractor(text):
        return named(seen.setdefault(f"{text}:tiny", Seen()), f"{text}:tiny")

    clip = TinyClip(None, None, None, "clip:tiny", torch.device("cpu"))
    monkeypatch.setattr("dither.measure.judges.open_extractor", extractor)
    monkeypatch.setattr("dither.measure.judges.open_scorer", lambda text: clip if text == "clip" else brightness)
    monkeypatch.setattr(
        "dither.measure.judges.open_lpips", lambda net: lambda a, b: np.abs(a[:, 0, 0, 0] - 0.0 - b[:, 0, 0, 0])
    )
    return seen


def brightness(pictures, prompts):
    assert len(prompts) == len(pictures)
    return pictures.reshape(len(pictures), -1).mean(axis=1) + [ord(prompt[-1]) for prompt in prompts]


brightness.name = "brightness"


def compared(small, full, **asked):
    found = compare_samples([small], full, Asked(batch_size=7, images=3, **asked), lambda *_: None, "how")
    json.dumps(found, allow_nan=False)
    return found["results"][0]


def rows_of(found):
    return {row["metric"]: row for row in found["guards"]}


def test_videos_are_compared_frame_by_frame_and_counted_as_videos(tmp_path):
    worse = near(2)
    worse[13] = 255 - worse[13]
    full, small = save(tmp_path / "full.npz", FULL), save(tmp_path / "small.npz", worse)
    found = compared(small, full)
    assert (found["n"], found["frames"], found["seeds"], found["command"]) == (N, FRAMES, list(range(N)), "how")
    expected = frame_psnr(worse, FULL).mean(axis=1)
    assert found["psnr_db"]["mean"] == pytest.approx(expected.mean())
    assert len(found["psnr_db"]["per_image"]) == N
    assert found["ssim"]["mean"] == pytest.approx(frame_ssim(worse, FULL).mean())
    assert found["fd"]["features"] is None
    assert [(entry["index"], entry["label"], entry["worst"]) for entry in found["images"]] == [
        (0, "a a", False), (1, "a b", False), (13, "a n", True)
    ]  # fmt: skip
    (row,) = found["guards"]
    assert (row["metric"], row["features"], row["better"], row["n"]) == ("temporal_flickering", "pixels", "closer", N)
    assert row["quantized"] == pytest.approx(flicker(worse).mean())
    assert row["difference"] == pytest.approx((flicker(worse) - flicker(FULL)).mean())


def test_the_report_and_the_tables_take_them(tmp_path):
    full, small = save(tmp_path / "full.npz", FULL), save(tmp_path / "small.npz", near(2))
    found = compared(small, full)
    html = render([found])
    assert "label a a" in html
    assert all(entry[side] in html for entry in found["images"] for side in ("full_precision", "quantized"))
    assert f"{found['psnr_db']['mean']}" in to_csv([found])
    assert f"{found['psnr_db']['mean']:.2f}" in to_markdown([found])


def test_networks_see_frames_once(tmp_path, networks):
    noisy = near(20)
    full, small = save(tmp_path / "full.npz", FULL), save(tmp_path / "small.npz", noisy)
    found = compared(small, full, features=("dinov2", "clip", "zoo"))
    assert {name: seen.frames for name, seen in networks.items()} == dict.fromkeys(networks, 2 * N * FRAMES)
    assert [fd["features"] for fd in found["fds"]] == [f"{name}, mean over frames (not FVD)" for name in networks]
    assert found["fd"]["to_full_precision"] > 0
    assert found["fd"]["ci95"] is not None
    rows = rows_of(found)
    assert set(rows) == {"temporal_flickering", "subject_consistency", "background_consistency"}
    features = np.stack([colours(video) for video in noisy])
    for metric, name in (("subject_consistency", "dinov2:tiny"), ("background_consistency", "clip:tiny")):
        assert (rows[metric]["features"], rows[metric]["better"]) == (name, "higher")
        assert rows[metric]["quantized"] == pytest.approx(consistency(features).mean())
        assert rows[metric]["difference_ci95"][0] <= rows[metric]["difference"] <= rows[metric]["difference_ci95"][1]


def test_prompts_lpips_and_other_scores(tmp_path, networks):
    noisy = near(20)
    full, small = save(tmp_path / "full.npz", FULL), save(tmp_path / "small.npz", noisy)
    found = compared(small, full, metrics=("clip-score", "external:x", "lpips"))
    rows = rows_of(found)
    frames = np.stack([colours(video) for video in noisy]).astype(np.float32)
    texts = TinyClip(None, None, None, "", None).embed_prompts(PROMPTS)
    assert rows["clipsim"]["quantized"] == pytest.approx(clipsim(frames, texts).mean())
    assert rows["clip_temp"]["quantized"] == pytest.approx(clip_temp(frames).mean())
    assert rows["clipsim"]["features"] == rows["clip_temp"]["features"] == "clip:tiny"
    assert rows["external"]["features"] == "brightness, mean over frames"
    letters = np.mean([ord(prompt[-1]) for prompt in PROMPTS])
    assert rows["external"]["quantized"] == pytest.approx(noisy.mean() + letters)
    expected = np.abs(FULL[..., 0, 0, 0].astype(int) - noisy[..., 0, 0, 0]).mean()
    assert found["lpips"]["mean"] == pytest.approx(expected)


def test_two_networks_for_one_guard_are_refused(tmp_path, networks):
    full, small = save(tmp_path / "full.npz", FULL), save(tmp_path / "small.npz", near(2))
    with pytest.raises(BadValue, match=r"subject_consistency .* 'dinov2:a:tiny' and by 'dinov2:b:tiny'"):
        compared(small, full, features=("dinov2:a", "dinov2:b"))


def test_several_sets_of_videos_are_ranked(tmp_path):
    full, *small = (save(tmp_path / f"{i}.npz", near(i)) for i in (0, 2, 60))
    found = compare_samples(small, full, Asked(), lambda *_: None, "")
    assert found["ranks"]["psnr_db"] == found["ranks"]["ssim"] == [[1, 1], [2, 2]]


def test_one_frame_is_a_picture(tmp_path):
    full, small = (save(tmp_path / f"{i}.npz", near(i)[:, :1]) for i in range(2))
    with pytest.raises(BadValue, match="videos of one frame"):
        compared(small, full)


def test_a_reference_of_pictures_judges_no_videos(tmp_path):
    full, small = (save(tmp_path / f"{i}.npz", near(i)) for i in range(2))
    with pytest.raises(BadValue, match=r"reference 'real\.npz' is of pictures"):
        compared(small, full, reference="real.npz")


def vbench(path, **values):
    path.write_text(json.dumps({name: [value, []] for name, value in values.items()}))
    return path


def test_results_of_vbench_are_guards_without_intervals(tmp_path):
    full, small = (save(tmp_path / f"{i}.npz", near(i)) for i in range(2))
    a = vbench(tmp_path / "a.json", dynamic_degree=0.5, subject_consistency=0.9, scene=1)
    b = vbench(tmp_path / "b.json", subject_consistency=0.95, dynamic_degree=0.75, imaging_quality=70)
    found = compared(small, full, metrics=(f"vbench:{a},{b}",))
    rows = [row for row in found["guards"] if row["features"] == "VBench"]
    assert [(row["metric"], row["quantized"], row["full_precision"], row["better"]) for row in rows] == [
        ("dynamic_degree", 0.5, 0.75, "closer"), ("subject_consistency", 0.9, 0.95, "higher")
    ]  # fmt: skip
    assert rows[0]["difference"] == -0.25
    assert all(row["difference_ci95"] is row["detectable"] is row["n"] is None for row in rows)
    assert all("one number a set" in row["reason"] for row in rows)
    assert "one number a set" in render([found])


def test_results_of_vbench_go_with_the_files_in_turn(tmp_path):
    full, *small = (save(tmp_path / f"{i}.npz", near(i)) for i in range(3))
    a, b, c = (vbench(tmp_path / f"{i}.json", scene=i / 4) for i in range(3))
    metrics = (f"vbench:{a},{b},{c}",)
    results = compare_samples(small, full, Asked(metrics=metrics), lambda *_: None, "")["results"]
    assert [rows_of(found)["scene"]["quantized"] for found in results] == [0, 0.25]
    assert [rows_of(found)["scene"]["full_precision"] for found in results] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("vbench:a.json", "must name two results of VBench"),
        ("vbench:a.json,a.json,b.json", "must name two results"),
        ("vbench:a.json,", "must name two results"),
        ("vbench:a.json,none.json", "cannot read none.json"),
        ("vbench:a.json,b.json", "'a.json' and 'b.json' have no dimension of VBench in common"),
    ],
)
def test_junk_for_vbench(tmp_path, monkeypatch, text, sentence):
    monkeypatch.chdir(tmp_path)
    full, small = (save(tmp_path / f"{i}.npz", near(i)) for i in range(2))
    vbench(tmp_path / "a.json", scene=1)
    vbench(tmp_path / "b.json", color=1)
    with pytest.raises(BadValue, match=sentence):
        compared(small, full, metrics=(text,))
