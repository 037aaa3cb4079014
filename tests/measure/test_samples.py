import json

import numpy as np
import pytest
import torch

from dither.cli.work import sample_to
from dither.errors import BadValue
from dither.evaluation.admfile import open_pictures, write_npz
from dither.extractors import ClipScore, Lpips
from dither.measure import Asked
from dither.measure.samples import compare_samples, is_samples
from dither.report import render

RNG = np.random.default_rng(0)
FULL = RNG.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
ASKED = Asked(batch_size=5, images=3)


def near(amount):
    return np.clip(FULL.astype(int) + RNG.integers(-amount, amount + 1, FULL.shape), 0, 255).astype(np.uint8)


def save(path, pictures, labels=range(12), seeds=range(12), settings=None):
    both = labels and list(labels), seeds and list(seeds)
    write_npz(path, [pictures], len(pictures), pictures.shape[1:], *both, settings)
    return str(path)


def compared(small, full, asked=ASKED):
    found = compare_samples([small], full, asked, lambda *_: None, "")
    json.dumps(found, allow_nan=False)
    return found["results"][0]


def test_files_are_compared_row_by_row(tmp_path):
    full = save(tmp_path / "full.npz", FULL)
    files = [save(tmp_path / f"{a}.npz", near(a)) for a in (2, 30)]
    told = []
    found = compare_samples(files, full, ASKED, lambda *step: told.append(step), "how")
    good, bad = found["results"]
    assert (good["model"], good["checkpoint"], good["n"], good["command"]) == ("full.npz", "2.npz", 12, "how")
    assert good["psnr_db"]["mean"] > 40 > bad["psnr_db"]["mean"]
    assert len(good["images"]) == 3
    assert found["ranks"]["psnr_db"] == [[1, 1], [2, 2]]
    assert told[-1] == ("comparing files", 2, 2)


def test_files_without_labels_are_taken_on_trust(tmp_path):
    full, small = save(tmp_path / "full.npz", FULL), save(tmp_path / "small.npz", near(2), None, None)
    found = compared(small, full)
    assert found["seeds"] == list(range(12))
    assert all(entry["seed"] == entry["index"] for entry in found["images"])


def test_seeds_that_no_file_names_are_null(tmp_path):
    full, small = (save(tmp_path / f"{i}.npz", near(i), seeds=None) for i in range(2))
    found = compared(small, full)
    assert found["seeds"] is None
    assert [entry["seed"] for entry in found["images"]] == [None] * 3
    html = render([found])
    assert "seed – · label 0" in html


def test_seeds_may_repeat(tmp_path):
    """Each prompt with seed 0: rows are pairs, whatever their seeds."""
    full, *small = (save(tmp_path / f"{i}.npz", near(i), seeds=[0] * 12) for i in (0, 2, 30))
    found = compare_samples(small, full, ASKED, lambda *_: None, "")
    assert found["ranks"]["psnr_db"] == [[1, 1], [2, 2]]
    assert found["results"][0]["seeds"] == [0] * 12


@pytest.mark.parametrize(
    ("pictures", "changes", "sentence"),
    [
        (FULL[:11], {"labels": range(11), "seeds": range(11)}, "11 samples .* 12"),
        (FULL[:, :8], {}, r"pictures of \(8, 16, 3\) .* \(16, 16, 3\)"),
        (FULL[:, None], {}, r"holds videos of \(1, 16, 16, 3\) and .* pictures of \(16, 16, 3\)"),
        (FULL, {"seeds": [*range(11), 99]}, "sample 11 has seed 99 .* and 11 in"),
        (FULL, {"labels": [5, *range(1, 12)]}, "sample 0 has label 5"),
    ],
)
def test_mismatched_sets_are_refused(tmp_path, pictures, changes, sentence):
    full, small = save(tmp_path / "full.npz", FULL), save(tmp_path / "small.npz", pictures, **changes)
    with pytest.raises(BadValue, match=sentence):
        compare_samples([small], full, ASKED, lambda *_: None, "")


def test_models_and_files_do_not_mix(tmp_path):
    with pytest.raises(BadValue, match="'zoo:digits' is no file of samples"):
        compare_samples([save(tmp_path / "a.npz", FULL)], "zoo:digits", ASKED, lambda *_: None, "")
    assert is_samples("a.npz")
    assert not is_samples("zoo:digits")


DRAWN = {"steps": 10, "guidance": 1.5, "scheduler": {"class": "DDIMScheduler", "beta_end": 0.02}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 25}, "'.*small.npz' was drawn with steps 25 and '.*full.npz' with 10"),
        ({"guidance": 4.0}, "guidance 4.0 and .* with 1.5"),
        ({"scheduler": {"class": "DDIMScheduler", "beta_end": 0.5}}, "scheduler.beta_end 0.5 and .* with 0.02"),
        ({"scheduler": {"class": "DDIMScheduler"}}, "scheduler.beta_end null and .* with 0.02"),
        ({"scheduler": None}, 'scheduler null and .* with {"beta_end": 0.02, "class"'),
        ({"extra": "x" * 99}, 'extra "x{59}... and .* with null'),
    ],
)
def test_files_of_different_settings_are_refused(tmp_path, changes, sentence):
    full = save(tmp_path / "full.npz", FULL, settings=DRAWN)
    small = save(tmp_path / "small.npz", near(2), settings={**DRAWN, **changes})
    with pytest.raises(BadValue, match=sentence):
        compared(small, full)


def test_settings_stand_in_the_results(tmp_path):
    full = save(tmp_path / "full.npz", FULL, settings=DRAWN)
    for settings in (DRAWN, None):  # a file that does not say is taken on trust
        found = compared(save(tmp_path / "small.npz", near(2), settings=settings), full)
        assert {key: found[key] for key in DRAWN} == DRAWN
    found = compared(save(tmp_path / "a.npz", near(2)), save(tmp_path / "b.npz", FULL))
    assert not set(DRAWN) & set(found)


def test_sampled_files_say_how_they_were_drawn(folders, tmp_path):
    paths = []
    for folder, steps in zip(folders[:2], (1, 2), strict=True):
        paths.append(tmp_path / f"{steps}.npz")
        sample_to(str(folder), tmp_path / "grid.png", paths[-1], 2, steps, 1.5, 0, [], 2, lambda *_: None)
    settings = open_pictures(paths[1]).settings
    assert (settings["steps"], settings["guidance"], settings["scheduler"]["class"]) == (2, 1.5, "DDIMScheduler")
    with pytest.raises(BadValue, match=r"1\.npz' was drawn with steps 1 and '.*2\.npz' with 2: they would differ"):
        compared(str(paths[0]), str(paths[1]))


def test_pictures_too_small_for_lpips_are_named(tmp_path, monkeypatch):
    lpips = Lpips(torch.nn.Identity(), "alex", torch.device("cpu"))
    monkeypatch.setattr("dither.measure.judges.open_lpips", lambda net: lpips)
    full, small = save(tmp_path / "full.npz", FULL), save(tmp_path / "small.npz", near(2))
    with pytest.raises(
        BadValue, match=r"^'lpips:alex' needs at least 31 pixels a side, and the pictures have 16 x 16\.$"
    ):
        compared(small, full, Asked(metrics=("lpips",)))


@pytest.mark.parametrize(
    ("labels", "sentence"), [(None, "'clip-score' needs prompts, and neither"), (range(12), "are class numbers")]
)
def test_scores_need_prompts(tmp_path, monkeypatch, labels, sentence):
    clip = ClipScore(None, None, None, "clip:tiny", torch.device("cpu"))
    monkeypatch.setattr("dither.measure.judges.open_scorer", lambda text: clip)
    full, small = (save(tmp_path / f"{i}.npz", near(i), labels) for i in range(2))
    with pytest.raises(BadValue, match=sentence):
        compared(small, full, Asked(metrics=("clip-score",)))


def test_vbench_is_for_videos(tmp_path):
    full, small = (save(tmp_path / f"{i}.npz", near(i)) for i in range(2))
    with pytest.raises(BadValue, match="'vbench:a,b' belongs to videos"):
        compared(small, full, Asked(metrics=("vbench:a,b",)))


def test_memory_is_that_of_a_few_batches(tmp_path, monkeypatch):
    """Files are read in parts of so many bytes, whatever the batch size."""
    sizes = []
    monkeypatch.setattr("dither.measure.samples.BATCH_BYTES", 8 * 64 * 64 * 3)
    monkeypatch.setattr("dither.evaluation.judge.Judge.add", lambda self, rows, *_: sizes.append(len(rows)))
    monkeypatch.setattr("dither.evaluation.judge.Judge.results", lambda self: {"images": [], "guards": []})
    pictures = np.zeros((20, 64, 64, 3), np.uint8)
    full, small = (save(tmp_path / f"{i}.npz", pictures, None, None) for i in range(2))
    compared(small, full, Asked(batch_size=64))
    assert sizes == [8, 8, 4]
