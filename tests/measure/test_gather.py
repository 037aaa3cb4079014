"""What becomes of jobs that fail, and of features that were seen before."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from dither.errors import BadValue, DitherError
from dither.evaluation.features import View
from dither.evaluation.guards import Crowd
from dither.measure import Asked, Running, compare
from dither.measure.judges import Judging, judging_for
from dither.scale import Failure, InProcess, ShardStore

ASKED = Asked(n=6, steps=2, batch_size=2, noise_floor=2, trajectory=2, images=2, speed=False)


@dataclass(frozen=True)
class Failing(InProcess):
    """Gives up every job that `bad` names."""

    bad: object = None

    def map(self, make, jobs):
        good = [job for job in jobs if not self.bad(job)]
        yield from ((job, Failure("RuntimeError: out of memory", 2)) for job in jobs if self.bad(job))
        yield from super().map(make, good)


def run(folders, bad, store=None, asked=ASKED):
    said = []
    found = compare(folders[1:], folders[0], asked, Running(Failing(bad=bad), store, say=said.append))
    json.dumps(found, allow_nan=False)
    return found["results"], said, found


def test_a_failed_batch_is_left_out_of_its_pair_only(folders, subjects):
    bad = subjects[1].digest

    def second_batch(job):
        return job["kind"] == "draw" and job["model"] == bad and job["seeds"][0] == ASKED.batch_size

    (first, second), said, whole = run(folders, second_batch)
    assert (first["n"], second["n"]) == (4, 6)
    assert first["seeds"] == [s for s in second["seeds"] if s not in (2, 3)]
    assert first["skipped"] == [
        {"what": "draw of 2 pictures from seed 2", "why": "RuntimeError: out of memory", "attempts": 2, "pictures": 2}
    ]
    assert second["skipped"] == []
    assert any("out of memory" in sentence for sentence in said)
    assert len(whole["pairs"]) == 2  # by the four pictures that both have


def test_full_precision_that_failed_is_missing_everywhere(folders, subjects):
    full = subjects[0].digest
    results, _, _ = run(folders, lambda job: job["model"] == full and job["seeds"] == [4, 5])
    assert [(r["n"], len(r["skipped"])) for r in results] == [(4, 1)] * 2


def test_a_failed_floor_or_trajectory_leaves_the_rest(folders, subjects):
    full = subjects[0].digest
    results, _, _ = run(
        folders, lambda job: job["kind"] == "trajectory" or (job["model"] == full and len(job["seeds"]) == 1)
    )
    for found in results:
        assert found["n"] == 6
        assert found["noise_floor"] is None
        assert found["drift"] is None
        assert "trajectory" not in found
        assert len(found["skipped"]) == 1


def test_nothing_left_is_an_error(folders):
    with pytest.raises(BadValue, match="all jobs failed: RuntimeError: out of memory"):
        run(folders, lambda job: True)


def test_a_later_run_tries_again_and_ends_as_if_nothing_had_happened(folders, tmp_path):
    whole, _, _ = run(folders, lambda job: False, tmp_path / "a")
    run(folders, lambda job: job["seeds"] == [2, 3], tmp_path / "b")
    again, _, _ = run(folders, lambda job: False, tmp_path / "b")
    for found in (*whole, *again):
        del found["seconds"]
    assert again == whole


def test_features_are_seen_once_a_batch(tmp_path):
    seen = []

    def see(pictures):
        seen.append(len(pictures))
        return Crowd(pictures.reshape(len(pictures), -1)[:, :2].astype(np.float32), None, None)

    how, store = Judging((View("pixels", see),)), ShardStore(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    for _ in range(2):
        judge = how.judge(0, store)
        judge.add(range(4), range(4), range(4), pictures, pictures)
        assert judge.tables()[0].full().features.tolist() == pictures.reshape(4, -1)[:, :2].tolist()
    assert seen == [4]


def test_judges_that_make_no_sense(tmp_path):
    with pytest.raises(BadValue, match="named twice"):
        judging_for(None, ["zoo:digits", "zoo:digits"], [], None, 0)
    with pytest.raises(DitherError, match=r"no\.npz"):
        judging_for(None, ["zoo:digits"], [], tmp_path / "no.npz", 0)
    with pytest.raises(DitherError, match="nothing"):
        judging_for(None, [], ["nothing"], None, 0)


def test_real_pictures_in_a_file_serve_any_features(tmp_path):
    """Real pictures of 'digits' judged by its own network: the distance and KID to them, pair by pair."""
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=real, mu=np.zeros(3), sigma=np.eye(3))
    how = judging_for(None, ["zoo:digits"], [], tmp_path / "real.npz", 0)
    judge = how.judge(0)
    full = rng.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    judge.add(range(200), [0] * 200, range(200), full, 255 - full)
    rows = {row["metric"]: row for row in judge.results()["guards"]}
    assert set(rows) == {"fd", "kid"}
    for row in rows.values():
        assert row["features"] == "zoo:digits"
        assert row["quantized"] != row["full_precision"]


def test_scores_of_prompts_need_prompts(folders, monkeypatch):
    monkeypatch.setattr(
        "dither.measure.judges.open_scorer", lambda text: lambda pictures, prompts: pictures[:, 0, 0, 0]
    )
    with pytest.raises(BadValue, match="'clip_score' needs prompts, and 'full' draws from class numbers"):
        run(folders, lambda job: False, asked=Asked(n=2, metrics=("clip-score:somewhere",)))
    with pytest.raises(BadValue, match="'clip-score' is asked for twice"):
        judging_for(None, [], ["clip-score:a", "clip-score:b"], None, 0)
