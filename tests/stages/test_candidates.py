"""Losses of whole allocations: of the model as it will be, once each, and nothing of it remains."""

import math

import jobs
import pytest
import studies
import torch

from dither.errors import BadRecipe, BadValue
from dither.kernels import named
from dither.nn import QLinear
from dither.spec import Act, AttentionSpec, Int, LinearSpec, Timed
from dither.stages import Assign, Rotate, Rtn, Smooth
from dither.stages.candidates import Candidates, candidates_of
from dither.stages.granularity import Limits, problem_of, settle
from dither.stages.nesting import rounded

SIZES = (16, 8, 4)
GROUPED = Assign(weight=Int(4, False, 8), act=Act(Int(8, group=8)), adaln=Int(8))
ADALN = "transformer_blocks.0.norm1.linear"
MIDDLE = (1,) * 8


def prepared(*stages, store=None) -> tuple[Candidates, list[studies.Counting]]:
    pipe = jobs.pipeline()
    job, found = studies.job(pipe, store=store)
    with torch.no_grad():
        for stage in (*stages, GROUPED):
            stage.run(job)
        problem = problem_of(job, "test", SIZES, Limits())
        return candidates_of(job, "test", problem, 2, 4, 1.5), found


def modules(model: torch.nn.Module):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return hooks, [(n, id(m)) for n, m in model.named_modules()]


def losses(candidates: Candidates, *genomes):
    with torch.no_grad():
        return [candidates.loss(genome) for genome in genomes]


@pytest.mark.parametrize("balance", [(), (Smooth(online=True), Rotate())], ids=["plain", "balanced"])
def test_a_loss_is_that_of_the_model_that_is_made(balance):
    genome = (2, 0, 1, 0, 0, 1, 2, 0)
    candidates, _ = prepared(*balance)
    (loss,) = losses(candidates, genome)
    pipe = jobs.pipeline()
    job, _ = studies.job(pipe)
    with torch.no_grad():
        for stage in (*balance, GROUPED):
            stage.run(job)
        settle(job, "test", candidates.problem, genome, {})
        study = job.study(studies.StudySettings())
        study.begin()
        Rtn().run(job)
        for layer in (m for m in job.model.modules() if isinstance(m, QLinear)):
            layer.kernel = named("reference")  # candidates are imitated, and so must this be for a close look
        assert loss == pytest.approx(study.losses()["mse"], rel=1e-4)


def test_while_pictures_are_drawn_every_promised_layer_is_imitated():
    candidates, found = prepared()
    job, seen = candidates.job, {}
    draw = found[0].draw

    def look():
        seen.update({n: m for n, m in job.model.named_modules() if isinstance(m, QLinear)})
        return draw()

    found[0].draw = look
    losses(candidates, MIDDLE)
    assert set(seen) == set(job.specs)
    assert len({s.weight.group for s in job.specs.values()}) == 2  # and those of modulation, which has one a row
    for name, twin in seen.items():
        spec = job.specs[name]
        assert twin.spec == LinearSpec(act=spec.act)
        assert torch.equal(twin.get_buffer("weight_dense"), rounded(job.dense(name), spec.weight))
    assert seen[ADALN].spec.act is None


def test_attention_is_quantized_where_that_is_promised_and_left_alone_afterwards():
    candidates, _ = prepared()
    plain = losses(candidates, MIDDLE)
    for i in range(2):
        candidates.job.attend(f"transformer_blocks.{i}.attn1", AttentionSpec(v=Act(Int(2, group=8))))
    candidates.known.clear()
    assert losses(candidates, MIDDLE)[0] > 1.5 * plain[0]
    assert not any("quantized" in name for name, _ in candidates.job.model.named_modules())


def test_layers_are_put_back_bit_for_bit():
    candidates, _ = prepared()
    model = candidates.job.model
    before, tensors = modules(model), {k: v.clone() for k, v in model.state_dict().items()}
    losses(candidates, MIDDLE, (0,) * 8)
    assert modules(model) == before
    assert list(model.state_dict()) == list(tensors)
    assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_layers_are_put_back_when_drawing_ends_early(error):
    candidates, found = prepared()
    before = modules(candidates.job.model)
    losses(candidates, MIDDLE)

    def stop():
        raise error

    found[0].draw = stop
    with pytest.raises(error):
        losses(candidates, (0,) * 8)
    assert modules(candidates.job.model) == before
    assert list(candidates.known) == [MIDDLE]


def test_each_genome_is_drawn_once_and_full_precision_before_all():
    candidates, found = prepared()
    first = losses(candidates, MIDDLE, (0,) * 8, MIDDLE)
    assert first[0] == first[2] != first[1]
    assert (found[0].begun, found[0].drawn) == (1, 2)
    assert candidates.model_samples == 2 * 4 * 2 * 3


def test_guidance_doubles_the_work_only_where_there_is_some():
    candidates, _ = prepared()
    job, problem = candidates.job, candidates.problem
    assert candidates_of(job, "test", problem, 3, 5, 1.0).model_samples == 15
    assert candidates_of(job, "test", problem, 3, 5, 1.1).model_samples == 30


def test_what_candidates_have_in_common_is_imitated_once(monkeypatch):
    candidates, _ = prepared()
    losses(candidates, MIDDLE)
    made, plain = [], candidates.job.imitation
    monkeypatch.setattr(candidates.job, "imitation", lambda name, *a: made.append(name) or plain(name, *a))
    other = (2, *MIDDLE[1:])
    losses(candidates, other)
    assert tuple(made) == candidates.problem.units[0].layers
    fresh, _ = prepared()
    assert losses(fresh, other) == [candidates.known[other]]


def test_what_is_in_the_store_is_not_drawn_again():
    store = studies.Kept()
    candidates, _ = prepared(store=store)
    want = losses(candidates, MIDDLE, (0,) * 8)
    assert len(store) == 2
    assert all(name.startswith("sensitivity.test.mse.2x4.") for name in store)
    again, found = prepared(store=store)
    assert losses(again, MIDDLE, (0,) * 8) == want
    assert (found[0].begun, found[0].drawn) == (0, 0)
    assert again.model_samples == candidates.model_samples


@pytest.mark.parametrize("change", [{"samples": 3}, {"steps": 5}, {"guidance": 2.0}, {"judge": "zoo:fashion"}])
def test_another_drawing_is_another_measurement(change):
    store = studies.Kept()
    candidates, _ = prepared(store=store)
    losses(candidates, MIDDLE)
    asked = {"samples": 2, "steps": 4, "guidance": 1.5, "judge": ""} | change
    losses(candidates_of(candidates.job, "test", candidates.problem, **asked), MIDDLE)
    assert len(store) == 2


def test_the_judged_distance_is_the_loss():
    candidates, found = prepared()
    judged = candidates_of(candidates.job, "test", candidates.problem, 2, 4, 1.5, "zoo:fashion")
    loss = losses(judged, MIDDLE)[0]
    assert found[1].roles == ("distance",)
    assert loss != losses(candidates, MIDDLE)[0]
    assert judged.judge == "largest difference"
    assert candidates.judge == "mean squared error of the final states"


def refuses():
    raise BadValue("The pipeline produced NaN or infinite pictures.")


@pytest.mark.parametrize(
    "answer",
    [lambda: {"mse": math.nan}, lambda: {"mse": math.inf}, refuses],
    ids=["nan", "infinity", "refused"],
)
def test_pictures_that_are_not_finite_are_infinitely_bad(answer):
    store = studies.Kept()
    candidates, found = prepared(store=store)
    finite = losses(candidates, MIDDLE)
    plain, found[0].losses = found[0].losses, answer
    assert losses(candidates, (0,) * 8) == [math.inf]
    found[0].losses = plain
    with torch.no_grad():
        assert candidates.best([(0,) * 8, MIDDLE]) == MIDDLE
        with pytest.raises(BadValue, match="test: the pictures of all 2 allocations hold NaN or infinity"):
            candidates.best([(0,) * 8])
    again, _ = prepared(store=store)
    assert losses(again, MIDDLE, (0,) * 8) == [*finite, math.inf]


def test_errors_that_are_no_pictures_stop_the_search():
    candidates, found = prepared()

    def missing():
        raise BadRecipe("something else")

    found[0].losses = missing
    with pytest.raises(BadRecipe, match="something else"):
        losses(candidates, MIDDLE)


def test_what_cannot_be_imitated_is_refused():
    candidates, _ = prepared()
    job, problem = candidates.job, candidates.problem
    job.specs[ADALN] = LinearSpec(Int(8), Act(Int(8), static=True))
    with pytest.raises(BadRecipe, match=f"test: layer '{ADALN}' has static activations"):
        candidates_of(job, "test", problem, 2, 4, 1.5)
    job.vary(ADALN, Timed((LinearSpec(Int(8)),), (0,)))
    with pytest.raises(BadRecipe, match=f"test: layer '{ADALN}' changes over time"):
        candidates_of(job, "test", problem, 2, 4, 1.5)


def test_a_model_without_a_pipeline_cannot_be_searched():
    candidates, _ = prepared()
    job = jobs.job(candidates.job.model)
    with pytest.raises(BadValue, match=r"draws pictures .* give it a pipeline"):
        candidates_of(job, "test", candidates.problem, 2, 4, 1.5)
