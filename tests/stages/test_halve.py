"""Successive halving: who stays, by how many pictures, within the limits, and where it goes on."""

import jobs
import pytest
import studies

import dither
from dither.checkpoint import header_of
from dither.errors import BadRecipe
from dither.spec import Bits, Recipe
from dither.stages import Halve, Rtn, describe
from dither.stages.halve import rungs

STAGE = Halve(candidates=8, sizes=studies.SIZES, samples=2, most=8)


@pytest.mark.parametrize(
    ("asked", "plan"),
    [
        ((64, 4, 32), [(64, 4), (32, 8), (16, 16), (8, 32)]),
        ((8, 2, 100), [(8, 2), (4, 4), (2, 8)]),
        ((5, 2, 100), [(5, 2), (3, 4), (2, 8)]),
        ((9, 4, 6), [(9, 4), (5, 6)]),
        ((9, 4, 4), [(9, 4)]),
        ((2, 4, 32), [(2, 4)]),
        ((1, 4, 32), [(1, 4)]),
    ],
)
def test_rungs(asked, plan):
    assert list(rungs(*asked)) == plan


def test_the_better_half_stays_and_the_best_is_taken():
    job, found, asked = studies.searched(STAGE)
    assert [(s.samples, s.steps, s.guidance) for s in asked] == [(2, 5, 1.5), (4, 5, 1.5), (8, 5, 1.5)]
    first, second, last = (study.seen for study in found)
    assert first[0] == (8,) * len(job.specs)  # uniform
    assert len(set(first)) == len(first) == 8
    ranked = sorted(first, key=lambda sizes: studies.total(found[0], sizes))
    assert second == ranked[:4]
    assert last[:2] == ranked[:2]
    assert studies.groups(job) == ranked[0]


def test_all_candidates_keep_the_limits():
    _, (study, *_), _ = studies.searched(STAGE)
    assert set(study.seen) <= set(studies.allowed().values())


def test_the_uniform_allocation_is_judged_by_the_last_pictures_too():
    job, found, _ = studies.searched(STAGE, seed=1)
    uniform = (8,) * len(job.specs)
    assert found[2].seen[2:] == [uniform]  # it had lost, and is judged for comparison
    note = job.notes["halve"]
    assert note["uniform_loss"] == pytest.approx(studies.total(found[2], uniform))
    assert note["loss"] == pytest.approx(studies.total(found[2], studies.groups(job)))
    assert note["loss"] < note["uniform_loss"]
    assert note["rungs"] == [{"candidates": c, "samples": s} for c, s in ((8, 2), (4, 4), (2, 8))]
    assert note["history"] == [note["loss"]] * 3
    assert note["evaluations"] == 8 + 4 + 3
    assert note["model_samples"] == 5 * 2 * (2 * 9 + 4 * 5 + 8 * 4)


@pytest.mark.parametrize("most", [0, 5, 10, 14])
def test_an_interrupted_search_goes_on_and_finds_the_same(most):
    whole, _, _ = studies.searched(STAGE, seed=1)
    store = studies.Kept(most)
    with pytest.raises(KeyboardInterrupt):
        studies.searched(STAGE, seed=1, store=store)
    store.most = 10**9
    again, found, _ = studies.searched(STAGE, seed=1, store=store)
    assert sum(len(study.seen) for study in found) == 15 - most
    assert again.notes == whole.notes
    assert again.specs == whole.specs


def test_other_seeds_are_other_candidates():
    a, b = (studies.searched(STAGE, seed)[1][0].seen for seed in (0, 1))
    assert a != b
    assert a == studies.searched(STAGE)[1][0].seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": 1}, r"halve\.candidates 1: must be at least 2"),
        ({"most": 1}, r"halve\.most 1: must be at least 2, the samples of the first rung"),
        ({"samples": 0}, r"halve\.samples 0: must be at least 1"),
        ({"steps": 0}, r"halve\.steps 0: must be at least 1"),
        ({"sizes": (3,)}, r"halve\.sizes \[3\]: none divides"),
        ({"bitops": 1.0}, r"halve\.bitops 1: the coarsest sizes take"),
    ],
)
def test_fields_that_make_no_sense(change, message):
    fields = {"candidates": 8, "sizes": studies.SIZES, "samples": 2, "most": 8}
    with pytest.raises(BadRecipe, match=message):
        studies.searched(Halve(**fields | change))


def test_a_pipeline_is_searched_by_real_pictures_and_later_ones_contain_the_earlier(monkeypatch):
    seen, real = [], dither.quantization.study_of

    def watched(pipeline, settings, prompts, seeds):
        seen.append(tuple(seeds))
        return real(pipeline, settings, prompts, seeds)

    monkeypatch.setattr(dither.quantization, "study_of", watched)
    stage = Halve(candidates=4, sizes=studies.SIZES, samples=2, most=4, steps=2)
    recipe = Recipe("t", "", Bits(4, 8), describe((studies.GROUPED, stage, Rtn())))
    pipe = dither.quantize(jobs.pipeline(), recipe, calibration=dither.Calibration(samples=2, steps=2))
    assert [len(s) for s in seen] == [2, 4]
    assert seen[1][:2] == seen[0]
    header = header_of(pipe.transformer)
    note = header.recipe["notes"]["halve"]
    assert {n: s.weight.group for n, s in header.plan.layers.items()} == note["groups"]
    assert note["loss"] > 0
    assert note["uniform_loss"] > 0


def test_the_uniform_allocation_competes_and_one_copy_of_the_model_is_held(monkeypatch):
    """It falls out on few pictures and wins on many: what is taken is never worse than what it is held against."""
    from dither.stages import candidates

    alive = []
    plain = candidates.Candidates.__init__

    def watched(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        alive.append(self)

    monkeypatch.setattr(candidates.Candidates, "__init__", watched)
    loss = candidates.Candidates.loss

    def judged(self, genome):
        value = loss(self, genome)
        return value if self.settings.samples < 8 or genome != self.problem.uniform else value * 1e-6

    monkeypatch.setattr(candidates.Candidates, "loss", judged)
    job, _, _ = studies.searched(STAGE, seed=1)
    assert studies.groups(job) == (8,) * len(job.specs)
    assert [bool(rung._twins) for rung in alive] == [False, False, True]
