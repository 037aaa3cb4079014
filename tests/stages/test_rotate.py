"""Rotations: exact, shared by the readers of a site, rounded once; which layers get one, and what is refused."""

from dataclasses import replace

import jobs
import pytest
import torch

import dither
from dither.checkpoint import header_of
from dither.errors import BadFormat, BadRecipe
from dither.models import Call, adapter_for
from dither.nn import QLinear
from dither.numerics import encode, random_signs, rotate
from dither.spec import Act, Bits, Int, LinearSpec, Recipe, Rotation
from dither.stages import Assign, Rotate, Rtn, Smooth, describe

FIRST = "transformer_blocks.0."
INSIDE = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
ALL = {f"transformer_blocks.{i}.{name}" for i in range(2) for name in INSIDE}
W4A8 = Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(8))


def rotated(*stages, seed: int = 0, **changes):
    model = jobs.pipeline(**changes).transformer
    return jobs.run(stages, model, seed=seed), model


def rotations(job) -> dict[str, Rotation]:
    return {name: s.rotation for name, s in job.specs.items() if s.rotation is not None}


def widened():
    """A model whose hidden width, 28, is a Hadamard order, and no power of two."""
    return {"num_attention_heads": 2, "attention_head_dim": 14}


# --- the rotation


@pytest.mark.parametrize(
    "stages", [(Rotate(),), (Rotate(block=8),), (Smooth(), Rotate()), (Smooth(online=True), Rotate())]
)
def test_the_function_stays_the_same(stages):
    job, model = rotated(*stages)
    assert set(rotations(job)) == ALL
    assert jobs.relative_error(jobs.outputs(model), jobs.outputs(jobs.pipeline().transformer)) < 1e-5


def test_widths_that_are_no_power_of_two():
    model, dense = (jobs.pipeline(**widened()).transformer for _ in range(2))
    job = jobs.run((Rotate(),), model)
    assert {r.block for r in rotations(job).values()} == {28, 112}
    assert jobs.relative_error(jobs.outputs(model), jobs.outputs(dense)) < 1e-5


def test_weights_are_rotated_by_the_stored_signs_and_rounded_once():
    job, model = rotated(Smooth(), Rotate(block=8), W4A8, Rtn(), seed=3)
    _, smooth = rotated(Smooth())
    assert job.finish().layers[FIRST + "attn1.to_v"] == LinearSpec(Int(4), Act(Int(8)), rotation=Rotation(8, 3))
    for name in ALL:
        layer, w = model.get_submodule(name), smooth.get_submodule(name).weight.detach()
        assert isinstance(layer, QLinear)
        signs = layer.get_buffer("rotation_signs")
        assert torch.equal(signs, random_signs(w.shape[1], 3))
        want = encode(rotate(w.double(), signs, 8).float(), Int(4))
        assert all(torch.equal(layer.get_buffer(f"weight_{k}"), v) for k, v in want.items())


def test_half_precision_weights_are_not_rounded_by_the_rotation():
    model = jobs.pipeline().transformer.bfloat16()
    w = model.get_submodule(FIRST + "attn1.to_q").weight.detach().clone()
    job = jobs.job(model)
    with torch.no_grad():
        Rotate().run(job)
    turned = job.dense(FIRST + "attn1.to_q")
    assert turned.dtype == torch.float32
    torch.testing.assert_close(turned, rotate(w.float(), random_signs(16, 0), 16))
    x = torch.randn(2, 5, 16, dtype=torch.bfloat16)
    y = model.get_submodule(FIRST + "attn1.to_q")(x)
    assert y.dtype == torch.bfloat16


def test_another_seed_gives_other_signs():
    name = FIRST + "attn1.to_q"
    signs = [rotated(Rotate(), seed=s)[1].get_submodule(name).get_buffer("rotation_signs") for s in (0, 1)]
    assert not torch.equal(*signs)


def test_readers_of_one_site_share_a_rotation():
    _, model = rotated(Rotate())
    signs = [model.get_submodule(FIRST + f"attn1.to_{x}").get_buffer("rotation_signs") for x in "qkv"]
    assert torch.equal(signs[0], signs[1])
    assert torch.equal(signs[0], signs[2])


def test_modulation_embedders_and_the_final_layer_are_left_alone():
    model, dense = jobs.pipeline().transformer, jobs.pipeline().transformer
    layers = adapter_for(model).layers(model)
    jobs.run((Rotate(),), model)
    others = [layer for layer in layers if layer.name not in ALL]
    assert {layer.kind for layer in others} == {"adaln", "embed", "final"}
    for layer in others:
        assert torch.equal(model.get_submodule(layer.name).weight, dense.get_submodule(layer.name).weight)


def test_a_rotation_spreads_an_outlier_channel_and_saves_the_layer():
    """One channel a hundred times the others: at four bits per token nothing of the others is left without a rotation."""
    make = torch.Generator().manual_seed(0)
    x = torch.randn(64, 256, generator=make)
    x[:, 3] *= 100
    w = torch.randn(8, 256, generator=make)
    w[:, 3] /= 100
    errors = []
    for spec in (LinearSpec(act=Act(Int(4))), LinearSpec(act=Act(Int(4)), rotation=Rotation(256))):
        layer = QLinear(spec, 256, 8, None)
        tensors = {"weight_dense": w if spec.rotation is None else rotate(w, random_signs(256, 0), 256)}
        if spec.rotation is not None:
            tensors["rotation_signs"] = random_signs(256, 0)
        errors.append(float((layer.load(tensors)(x) - x @ w.T).square().mean()))
    assert errors[1] < 0.5 * errors[0]


# --- which layers


def test_a_regular_expression_chooses_layers():
    job, model = rotated(Rotate(layers=r"ff\.net|to_out"))
    assert set(rotations(job)) == {name for name in ALL if "ff" in name or "to_out" in name}
    assert jobs.relative_error(jobs.outputs(model), jobs.outputs(jobs.pipeline().transformer)) < 1e-5


def test_without_a_threshold_no_data_is_needed_and_nothing_is_noted():
    job = jobs.job(jobs.pipeline().transformer)
    job.record = None  # would fail if it were called
    with torch.no_grad():
        Rotate().run(job)
    assert set(rotations(job)) == ALL
    assert job.notes == {}


def test_a_threshold_chooses_the_sites_that_stand_out_and_every_value_is_noted():
    everything, _ = rotated(Rotate(threshold=0.0))
    assert set(everything.notes) == ALL
    peaks = {name: max(facts["incoherence"]) for name, facts in everything.notes.items()}
    assert all(1 <= p <= 64 for p in peaks.values())
    limit = sorted(peaks.values())[len(peaks) // 2]
    job, _ = rotated(Rotate(threshold=limit))
    assert set(rotations(job)) == {name for name, p in peaks.items() if p >= limit} < ALL
    assert {name: max(facts["incoherence"]) for name, facts in job.notes.items()} == peaks
    assert {name for name, facts in job.notes.items() if facts["rotated"]} == set(rotations(job))


def test_an_expression_overrides_the_rule_and_values_are_noted_all_the_same():
    job, _ = rotated(Rotate(threshold=1e6, layers="to_v"))
    assert set(rotations(job)) == set(job.notes) == {name for name in ALL if "to_v" in name}


def test_notes_are_stored_with_the_recipe_and_survive_a_checkpoint(tmp_path):
    recipe = Recipe("test", "", Bits(4, 8), describe((Rotate(threshold=0.0), W4A8, Rtn())))
    how = dither.Calibration(samples=10, steps=3, calls=3)
    model = dither.quantize(jobs.pipeline(), recipe, calibration=how).transformer
    notes = header_of(model).recipe["notes"]
    assert set(notes) == ALL
    dither.save(model, tmp_path / "saved")
    assert header_of(dither.load(tmp_path / "saved")).recipe["notes"] == notes


def test_a_model_in_half_precision_with_rotated_layers_left_out_reloads_to_the_same_bits(tmp_path):
    """Such layers are rotated in float32 and stored as the model is."""
    dense = jobs.pipeline()
    dense.transformer.save_pretrained(tmp_path / "dense")
    model = type(dense.transformer).from_pretrained(tmp_path / "dense", torch_dtype=torch.bfloat16)
    recipe = Recipe("test", "", Bits(4, 8), describe((Rotate(), replace(W4A8, exclude=r"to_q|ff\.net\.2"), Rtn())))
    dither.quantize(model, recipe, run=lambda: None)
    left_out = model.get_submodule(FIRST + "ff.net.2")
    assert left_out.spec == LinearSpec(rotation=Rotation(64, 0))
    calls = [Call((c.args[0].bfloat16(),), c.kwargs) for c in jobs.calls()]
    with torch.no_grad():
        want = [model(*c.args, **c.kwargs)[0] for c in calls]
        dither.save(model, tmp_path / "saved")
        again = dither.load(tmp_path / "saved", dtype=torch.bfloat16)
        assert all(torch.equal(again(*c.args, **c.kwargs)[0], w) for c, w in zip(calls, want, strict=True))


# --- what is refused


def refused(stage: Rotate, error: type[Exception], words: str, **changes) -> None:
    model = jobs.pipeline(**changes).transformer
    job = jobs.job(model)
    job.record = None
    with pytest.raises(error, match=words), torch.no_grad():
        stage.run(job)
    assert jobs.same_tensors(model, jobs.pipeline(**changes).transformer)


NONE = {"num_attention_heads": 2, "attention_head_dim": 46}


def test_a_width_without_a_hadamard_matrix_names_layer_and_size_before_anything_changes():
    refused(Rotate(), BadFormat, r"layer 'transformer_blocks\.0\.attn1\.to_q'.* order 92", **NONE)


def test_a_block_that_does_not_divide_names_layer_and_sizes():
    refused(Rotate(block=8), BadFormat, r"layer '.*to_q': rotate\.block 8 does not divide its 92", **NONE)


def test_such_layers_may_be_skipped():
    model, dense = jobs.pipeline(**NONE).transformer, jobs.pipeline(**NONE).transformer
    job = jobs.run((Rotate(skip=True),), model)
    assert set(rotations(job)) == {name for name in ALL if "ff.net.2" in name}  # 368 inputs, and 367 is prime
    assert jobs.relative_error(jobs.outputs(model), jobs.outputs(dense)) < 1e-5


def test_an_expression_that_finds_only_what_is_never_rotated_is_refused():
    refused(
        Rotate(layers="proj_out|norm1.linear"), BadRecipe, r"rotate\.layers '.*' finds no layer that can be rotated"
    )


@pytest.mark.parametrize("block", [-8, 1, 3, 12])
def test_a_block_is_a_power_of_two(block):
    refused(Rotate(block=block), BadRecipe, rf"rotate\.block {block}")


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_a_threshold_is_a_number_from_0(threshold):
    refused(Rotate(threshold=threshold), BadRecipe, r"rotate\.threshold")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(ff", "is not a regular expression"), ("[[a", "is not a regular expression"),
        ("a{99999999999}", "is not a regular expression"), ("nothing", "is found in no layer's name"),
        ("x" * 501, "501 characters"),
    ],
)  # fmt: skip
def test_a_bad_expression_is_shown(pattern, words):
    refused(Rotate(layers=pattern), BadRecipe, rf"rotate\.layers .*{words}")


def test_rotating_twice_is_an_error():
    with pytest.raises(BadRecipe, match=r"layer '.*to_q' is rotated twice"):
        rotated(Rotate(), Rotate())


def test_an_online_scale_does_not_come_after_a_rotation():
    job, _ = rotated(Rotate())
    with pytest.raises(BadRecipe, match="scaled after it was rotated"):
        job.online(FIRST + "ff.net.2", pre_scale=torch.ones(1, 64))
