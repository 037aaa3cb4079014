import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from dither.errors import BadValue
from dither.measure.drawing import Drawing, MakeHere, MakeWorker, drawings, floor_jobs, trajectory_jobs
from dither.scale.jobs import key_of

WHAT = Drawing(
    tuple(i % 10 for i in range(7)), tuple(range(7)), steps=2, guidance=1.5, batch_size=3, floor=4, trajectory=5
)


def keys(jobs):
    return [key_of(job) for _, job in jobs]


def test_batches_cover_every_picture_once(subjects):
    made = drawings(subjects[0], WHAT)
    assert [(place.start, place.stop) for place, _ in made] == [(0, 3), (3, 6), (6, 7)]
    assert [seed for _, job in made for seed in job["seeds"]] == list(WHAT.seeds)
    assert json.loads(json.dumps([job for _, job in made])) == [job for _, job in made]


@pytest.mark.parametrize(
    "change", [{"steps": 3}, {"guidance": 2.0}, {"batch_size": 2}, {"seeds": tuple(range(1, 8))}, {"labels": (1,) * 7}]
)
def test_whatever_changes_a_picture_changes_its_job(subjects, change):
    assert keys(drawings(subjects[0], WHAT))[0] != keys(drawings(subjects[0], replace(WHAT, **change)))[0]


def test_what_does_not_change_a_picture_shares_its_job(subjects):
    more = replace(WHAT, floor=0, trajectory=0, labels=(*WHAT.labels[:6], 0, 1, 2), seeds=tuple(range(9)))
    assert keys(drawings(subjects[0], WHAT))[:2] == keys(drawings(subjects[0], more))[:2]
    assert not set(keys(drawings(subjects[0], WHAT))) & set(keys(drawings(subjects[1], WHAT)))


def test_the_floor_has_another_batch_size_and_other_seeds(subjects):
    made = floor_jobs(subjects[0], WHAT)
    assert [(place.start, place.stop) for place, *_ in made] == [(i, i + 1) for i in range(4)]
    assert [again["seeds"] for _, again, _ in made] == [[0], [1], [2], [3]]
    assert [other["seeds"] for _, _, other in made] == [[7], [8], [9], [10]]
    assert floor_jobs(subjects[0], replace(WHAT, floor=0)) == []


def test_a_trajectory_names_both_models(subjects):
    full, small, _ = subjects
    made = trajectory_jobs(small, full, WHAT)
    assert [(job["kind"], len(job["seeds"])) for job in made] == [("trajectory", 5)]
    assert (made[0]["model"], made[0]["full"]) == (small.digest, full.digest)


def test_a_worker_elsewhere_draws_the_same(subjects):
    by_digest = {subject.digest: subject for subject in subjects}
    there = MakeWorker({digest: subject.text for digest, subject in by_digest.items()}, keep=1)
    here, other = MakeHere(by_digest)(), pickle.loads(pickle.dumps(there))()
    jobs = [job for subject in subjects for _, job in drawings(subject, WHAT)[:1]]
    for job in [*jobs, trajectory_jobs(subjects[1], subjects[0], WHAT)[0]]:
        ours, theirs = here(job), other(job)
        assert list(ours) == list(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_model_that_changed_meanwhile_is_named(subjects):
    worker = MakeWorker({"0" * 32: subjects[0].text})()
    with pytest.raises(BadValue, match="changed while it was being evaluated"):
        worker({**drawings(subjects[0], WHAT)[0][1], "model": "0" * 32})
