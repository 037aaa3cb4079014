"""``quantize``: pipelines, bare modules, models of classes that nobody prepared; refusals that change nothing."""

import math
from contextlib import suppress
from itertools import pairwise

import jobs
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dither
from dither.checkpoint import header_of
from dither.errors import BadFormat, BadModel, BadRecipe, BadValue, Refused
from dither.nn import QLinear
from dither.quantization import denoiser_of, full_precision_parts, plan_ahead, resolve_recipe, sample_seeds, stored_as

HOW = dither.Calibration(samples=4, steps=2)
QUICK = {"calibration": HOW}


class Block(nn.Module):
    """Attention-free, with a gate from the noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.gate = nn.Linear(width, width)

    def forward(self, h: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return h + self.gate(temb)[:, None] * self.down(torch.relu(self.up(self.norm(h))))


class Stranger(nn.Module):
    """A denoiser of a class nobody prepared, with names of its own and noise levels in [0, 1]."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.enter = nn.Linear(4, width)
        self.clock = nn.Linear(2, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.leave = nn.Linear(width, 4)
        self.register_buffer("table", torch.arange(4))

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        temb = self.clock(torch.stack([sigma, 1 - sigma], -1))  # (B, D)
        h = self.enter(noisy)  # (B, T, D)
        for layer in self.layers:
            h = layer(h, temb)
        return self.leave(h)


def stranger(seed: int = 0) -> Stranger:
    torch.manual_seed(seed)
    return Stranger().eval()


@torch.no_grad()
def sampler(model: nn.Module, steps: int = 6, n: int = 5) -> torch.Tensor:
    """The stranger's own Euler sampler."""
    x = torch.randn(n, 7, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.linspace(1, 0, steps + 1)
    for now, after in pairwise(levels):
        x = x + (after - now) * model(x, now.expand(n))
    return x


# --- a class that nobody prepared


ONLINE = ["smooth.online=true"]
STATIC = ["assign.act.static=true", "assign.time_groups=3", "assign.act.grid.symmetric=false"]


@pytest.mark.parametrize(
    ("recipe", "bits", "changes"),
    [
        ("rtn", "w8a8", []),
        ("rtn", "w3", []),
        ("rtn-clip", "w4a8", []),
        ("rtn", "w8a8", STATIC),
        ("smoothquant", "w8a8", ONLINE),
    ],
)
def test_a_stranger_is_quantized_saved_and_loaded_into_a_fresh_instance(recipe, bits, changes, tmp_path):
    model = stranger()
    clean = sampler(model)
    out = dither.quantize(model, recipe, bits, run=lambda: sampler(model), settings=changes)
    assert out is model
    plan = header_of(model).plan
    assert set(plan.layers) == {f"layers.{i}.{x}" for i in range(3) for x in ("up", "down", "gate")}
    assert plan.rows == (3 if changes is STATIC else 1)
    want = sampler(model)
    assert jobs.relative_error(want, clean) < (0.05 if bits == "w8a8" else 0.5)
    assert not torch.equal(want, clean)
    dither.save(model, tmp_path / "saved")
    fresh = dither.load(tmp_path / "saved", model=stranger(seed=99))
    assert jobs.same_tensors(fresh, model)
    assert torch.equal(sampler(fresh), want)


def test_rtn_needs_no_data_and_other_recipes_ask_for_run():
    dither.quantize(stranger(), "rtn", "w8a8")
    model = stranger()
    with pytest.raises(BadValue, match="give run="):
        dither.quantize(model, "rtn-clip", "w4a8")
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert jobs.same_tensors(model, stranger())


def test_a_run_that_never_calls_the_model_is_an_error():
    other = stranger()
    with pytest.raises(BadModel, match="never called the model"):
        dither.quantize(stranger(), "rtn-clip", run=lambda: sampler(other))


def test_a_layer_that_the_sampler_never_reaches_is_named():
    model = stranger()
    model.layers[1].extra = nn.Linear(4, 4)
    with pytest.raises(BadModel, match=r"layer 'layers\.1\.extra'"):
        dither.quantize(model, "rtn-clip", run=lambda: sampler(model))
    dither.quantize(model, "rtn-clip", run=lambda: sampler(model), settings=["assign.exclude=extra"])


def test_a_bare_model_of_a_known_family_folds():
    pipe = jobs.pipeline()
    dither.quantize(pipe.transformer, "smoothquant", "w8a8", run=lambda: jobs.sample(pipe))
    assert header_of(pipe.transformer).plan.layers
    assert jobs.relative_error(jobs.outputs(pipe.transformer), jobs.outputs(jobs.pipeline().transformer)) < 0.05


# --- pipelines


def test_a_pipeline_is_quantized_in_place_saved_and_loaded(tmp_path):
    pipe = jobs.pipeline()
    assert dither.quantize(pipe, "smoothquant", "w8a8", **QUICK) is pipe
    want = jobs.sample(pipe)
    dither.save(pipe, tmp_path / "p")
    again = dither.load(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    assert type(again) is type(pipe)
    assert torch.equal(jobs.sample(again), want)


def test_other_seeds_calibrate_on_other_noise_but_rtn_does_not_care():
    made = {
        (recipe, seed): dither.quantize(jobs.pipeline(), recipe, "w4a8", seed=seed, **QUICK).transformer
        for recipe in ("rtn", "smoothquant")
        for seed in (0, 1)
    }
    assert jobs.same_tensors(made["rtn", 0], made["rtn", 1])
    assert not jobs.same_tensors(made["smoothquant", 0], made["smoothquant", 1])


def test_the_global_generator_decides_nothing():
    made = []
    for seed in (1, 2):
        pipe = jobs.pipeline()
        torch.manual_seed(seed)
        made.append(dither.quantize(pipe, "rtn-clip", "w4a8", **QUICK).transformer)
    assert jobs.same_tensors(*made)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 900), st.integers(0, 900), st.integers(1, 50_000))
def test_calibration_never_sees_the_noise_of_an_evaluation(a, b, n):
    evaluation, calibration = sample_seeds(a, n), sample_seeds(b, n, calibration=True)
    assert len(set(evaluation)) == len(evaluation) == n
    assert max(evaluation) < min(calibration) or max(calibration) < min(evaluation)
    if a != b:
        other = sample_seeds(b, n)
        assert max(evaluation) < min(other) or max(other) < min(evaluation)
    assert max(calibration) < 2**63


def test_the_plan_ahead_changes_nothing_and_makes_no_data():
    pipe = jobs.pipeline()
    pipe.scheduler = None  # sampling would fail
    job = plan_ahead(pipe, resolve_recipe("smoothquant", "w4a8"))
    assert jobs.same_tensors(pipe.transformer, jobs.pipeline().transformer)
    real = header_of(dither.quantize(jobs.pipeline(), "smoothquant", "w4a8", **QUICK).transformer).plan
    assert job.specs == dict(real.layers)


def test_the_denoiser_is_found_or_the_thing_is_named():
    pipe = jobs.pipeline()
    assert denoiser_of(pipe) is pipe.transformer
    assert denoiser_of(pipe.transformer) is pipe.transformer
    with pytest.raises(BadModel, match="dict is neither a torch module nor a pipeline"):
        denoiser_of({})


def test_the_header_tells_how_it_was_made():
    model = dither.quantize(jobs.pipeline(), "rtn-clip", "w3", settings=["clip.steps=4"], **QUICK).transformer
    recipe = header_of(model).recipe
    assert recipe["name"] == "rtn-clip"
    assert recipe["bits"] == "w3"
    assert next(s for s in recipe["stages"] if s["stage"] == "clip")["steps"] == 4
    assert (recipe["seed"], recipe["calibration"]["prompts"]) == (0, [])
    assert header_of(model).version == dither.__version__


# --- stored calls


@pytest.mark.parametrize("recipe", ["smoothquant", "rtn-clip", "vidit-q"])
def test_stored_calls_give_what_drawing_them_gives(recipe, tmp_path):
    dither.save_calls(tmp_path / "c.safetensors", dither.record(jobs.pipeline(), calibration=HOW, seed=3))
    calls = dither.load_calls(tmp_path / "c.safetensors")
    drawn = dither.quantize(jobs.pipeline(), recipe, "w4a8", calibration=HOW, seed=3).transformer
    pipe = jobs.pipeline()
    pipe.scheduler = None  # drawing would fail
    stored = dither.quantize(pipe, recipe, "w4a8", calls=calls, seed=3).transformer
    assert jobs.same_tensors(stored, drawn)
    few = dither.quantize(jobs.pipeline(), recipe, "w4a8", calls=calls[:1], seed=3).transformer
    assert not jobs.same_tensors(few, drawn)


def test_a_stranger_is_calibrated_with_what_its_own_sampler_did(tmp_path):
    model, other = stranger(), stranger()
    calls = dither.record(model, run=lambda: sampler(model))
    dither.save_calls(tmp_path / "c.safetensors", calls, model)
    dither.quantize(model, "rtn-clip", "w4a8", run=lambda: sampler(model))
    dither.quantize(other, "rtn-clip", "w4a8", calls=dither.load_calls(tmp_path / "c.safetensors"))
    assert jobs.same_tensors(model, other)


def test_the_header_tells_which_calls_were_stored():
    calls = dither.record(jobs.pipeline(), calibration=HOW)
    made = [dither.quantize(jobs.pipeline(), "smoothquant", calls=c).transformer for c in (calls, calls[:1])]
    told = [header_of(model).recipe["calibration"] for model in made]
    assert [each["stored_calls"] for each in told] == [len(calls), 1]
    assert told[0]["digest"] != told[1]["digest"]


def test_what_a_network_alone_cannot_record():
    with pytest.raises(BadValue, match="Stranger is a network without a sampler: give run="):
        dither.record(stranger())


def test_calls_of_another_model_change_nothing():
    calls = dither.record(jobs.pipeline(), calibration=HOW)
    model = stranger()
    with pytest.raises(BadValue, match=r"calls= does not fit Stranger: denoiser call 0: .*unexpected keyword"):
        dither.quantize(model, "rtn", calls=calls)
    with pytest.raises(BadValue, match="calls= holds no denoiser call"):
        dither.quantize(model, "rtn", calls=())
    with pytest.raises(BadValue, match="run= or calls=, not both"):
        dither.quantize(model, "rtn", calls=calls, run=lambda: sampler(model))
    assert jobs.same_tensors(model, stranger())


# --- refusals


def nan_in(model: nn.Module) -> nn.Module:
    model.layers[0].norm.weight.data[3] = math.nan
    return model


REFUSALS = {
    "nan": (nan_in, {}, BadValue, r"'layers\.0\.norm\.weight' holds NaN"),
    "group": (lambda m: m, {"settings": ["assign.weight.group=7"]}, BadFormat, r"layer 'layers\.0\.up'.* 7 does not divide"),
    "act group": (lambda m: m, {"settings": ["assign.act.grid.group=7"]}, BadFormat, r"'layers\.0\.up'.* 7 does not"),
    "recipe": (lambda m: m, {"recipe": "magic"}, BadRecipe, "unknown recipe 'magic'"),
    "bits": (lambda m: m, {"bits": "w99"}, BadRecipe, "w99"),
    "nothing left": (lambda m: m, {"settings": ["assign.exclude=."]}, BadModel, "left every linear of Stranger"),
    "no data": (lambda m: m, {"recipe": "rtn-clip"}, BadValue, "give run="),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_leaves_the_model_as_it_was(case):
    spoil, options, error, words = REFUSALS[case]
    model, before = spoil(stranger()), spoil(stranger())
    with pytest.raises(error, match=words) as e:
        dither.quantize(model, **{"recipe": "rtn", "bits": "w8a8", **options})
    assert "\n" not in str(e.value)
    assert not any(isinstance(m, QLinear) for m in model.modules())
    left, right = model.state_dict(), before.state_dict()
    assert all(torch.equal(left[k].nan_to_num(), right[k].nan_to_num()) for k in right)


def test_a_width_that_does_not_divide_is_refused_before_smoothing_changes_a_weight():
    pipe = jobs.pipeline()
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    with pytest.raises(BadFormat, match="group size 7 does not divide"):
        dither.quantize(pipe, "smoothquant", "w8a8", settings=["assign.weight.group=7"], calibration=HOW)
    assert all(torch.equal(v, before[k]) for k, v in pipe.transformer.state_dict().items())


def test_what_is_quantized_already_is_refused():
    pipe = dither.quantize(jobs.pipeline(), "rtn", "w8a8")
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    with pytest.raises(Refused, match="DiTTransformer2DModel is quantized already"):
        dither.quantize(pipe, "rtn", "w4a8")
    assert all(torch.equal(v, before[k]) for k, v in pipe.transformer.state_dict().items())


def test_weights_without_data_are_named():
    with torch.device("meta"):
        model = Stranger()
    with pytest.raises(BadValue, match=r"parameter 'enter\.weight' has no data"):
        dither.quantize(model, "rtn")


def test_nan_in_the_calibration_is_named():
    model = stranger()
    with pytest.raises(BadValue, match="'argument 1' of denoiser call 0 holds NaN"):
        dither.quantize(model, "rtn-clip", run=lambda: model(torch.zeros(2, 7, 4), torch.full((2,), math.nan)))


def test_a_ready_recipe_takes_no_bits():
    with pytest.raises(BadValue, match="bits belong to a named recipe"):
        dither.quantize(stranger(), dither.recipes.get("rtn"), "w4")


# --- storage


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_rounding_to_the_stored_type_makes_the_checkpoint_exact(storage, tmp_path):
    pipe = dither.quantize(jobs.pipeline(), "smoothquant", "w8a8", storage=storage, **QUICK)
    want = jobs.sample(pipe)
    assert all(p.dtype == torch.float32 for p in pipe.transformer.parameters())
    dither.save(pipe, tmp_path / "p", storage=storage)
    again = dither.load(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(jobs.sample(again), want)
    assert jobs.same_tensors(again.transformer, pipe.transformer)


@pytest.mark.parametrize("recipe", ["rtn", "rtn-clip", "smoothquant"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_pipeline_in_half_precision_reloads_to_the_same_bits(dtype, recipe, tmp_path):
    jobs.pipeline().save_pretrained(tmp_path / "dense")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "dense", torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    clean = jobs.sample(pipe)
    want = jobs.sample(dither.quantize(pipe, recipe, "w8a8", **QUICK))
    assert 0 < float((want - clean).abs().mean()) < 0.1
    dither.save(pipe, tmp_path / "p")
    again = dither.load(tmp_path / "p", dtype=dtype)
    again.set_progress_bar_config(disable=True)
    assert jobs.same_tensors(again.transformer, pipe.transformer)
    assert torch.equal(jobs.sample(again), want)


def test_values_too_large_for_the_stored_type_are_named():
    pipe = jobs.pipeline()
    pipe.transformer.proj_out_2.bias.data[0] = 1e6
    with pytest.raises(BadValue, match=r"'proj_out_2\.bias' holds values too large to be stored as torch\.float16"):
        dither.quantize(pipe, "rtn", storage=torch.float16)


def test_saving_in_another_type_leaves_the_model_as_it_was(tmp_path):
    pipe = dither.quantize(jobs.pipeline(), "rtn", "w8a8")
    want, before = jobs.sample(pipe), {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    dither.save(pipe, tmp_path / "p", storage=torch.float16)
    assert torch.equal(jobs.sample(pipe), want)
    after = pipe.transformer.state_dict()
    assert all(v.dtype == after[k].dtype and torch.equal(v, after[k]) for k, v in before.items())


def test_stored_as_casts_tied_weights_once_and_restores_after_an_error():
    model = tiny.dense()
    tiny.quantize(model, tiny.PLAN, tiny.read)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with suppress(ZeroDivisionError), stored_as(model, torch.float16):
        assert model.last.weight.dtype == model.tied.weight.dtype == torch.float16
        packed = model.state_dict()
        assert all(v.dtype == before[k].dtype for k, v in packed.items() if k not in full_precision_parts(model))
        raise ZeroDivisionError
    after = model.state_dict()
    assert all(v.dtype == after[k].dtype and torch.equal(v, after[k]) for k, v in before.items())
    assert model.last.weight is model.tied.weight
