import numpy as np
import pytest

from dither.errors import BadValue
from dither.evaluation.admfile import write_npz
from dither.measure import Asked
from dither.measure.samples import compare_samples, is_samples

RNG = np.random.default_rng(0)
FULL = RNG.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
ASKED = Asked(batch_size=5, images=3)


def near(amount):
    return np.clip(FULL.astype(int) + RNG.integers(-amount, amount + 1, FULL.shape), 0, 255).astype(np.uint8)


def save(path, pictures, labels=range(12), seeds=range(12)):
    write_npz(path, [pictures], len(pictures), pictures.shape[1:], labels and list(labels), seeds and list(seeds))
    return str(path)


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
    assert compare_samples([small], full, ASKED, lambda *_: None, "")["results"][0]["seeds"] == list(range(12))


@pytest.mark.parametrize(
    ("pictures", "changes", "sentence"),
    [
        (FULL[:11], {"labels": range(11), "seeds": range(11)}, "11 samples .* 12"),
        (FULL[:, :8], {}, r"\(8, 16, 3\) .* \(16, 16, 3\)"),
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
