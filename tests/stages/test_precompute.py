"""Timestep embedders as tables: exact, smaller where they repeat, and stored in place of the embedders."""

import json

import jobs
import pytest
import tiny
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

import dither
from dither.checkpoint import config_of, header_of, load_into, metadata_of, save
from dither.checkpoint.header import Header
from dither.errors import BadCheckpoint, BadRecipe, BadValue, DitherError
from dither.models import adapter_for
from dither.nn import TimestepTable
from dither.spec import Act, Bits, Int, LinearSpec, Plan, Recipe, TableSpec
from dither.stages import Assign, Job, Precompute, Ranges, Rtn, Smooth, describe

PLAIN = Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(8))
NAMES = [f"transformer_blocks.{i}.norm1.emb" for i in range(2)]
RECIPE = Recipe("test", "", Bits(4, 8), describe((Precompute(), PLAIN, Rtn())))


def copied() -> DiTTransformer2DModel:
    """A model whose blocks have copies of one embedder, as converted checkpoints have."""
    model = jobs.pipeline().transformer
    first, second = (model.get_submodule(name).timestep_embedder for name in NAMES)
    second.load_state_dict(first.state_dict())
    return model


def test_every_whole_timestep_gives_what_the_embedder_gave():
    model, plain = jobs.pipeline().transformer, jobs.pipeline().transformer
    jobs.run((Precompute(),), model)
    labels = torch.zeros(1, dtype=torch.long)
    for name in NAMES:
        was, now = plain.get_submodule(name), model.get_submodule(name)
        with torch.no_grad():  # one by one, as a sampler may ask
            want = torch.cat([was(torch.tensor([t]), labels) for t in range(0, 1000, 7)])
            got = torch.cat([now(torch.tensor([t]), labels) for t in range(0, 1000, 7)])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_samples_stay_the_same_and_no_embedder_is_left():
    pipe, plain = jobs.pipeline(), jobs.pipeline()
    job = jobs.run((Precompute(),), pipe.transformer)
    torch.testing.assert_close(jobs.sample(pipe), jobs.sample(plain), rtol=1e-4, atol=1e-5)
    assert not any("timestep_embedder" in name for name in pipe.transformer.state_dict())
    assert not any(layer.kind == "embed" for layer in job.layers.values())
    assert job.finish().timesteps == {name: TableSpec(1000) for name in NAMES}


def test_copies_of_one_embedder_share_a_table():
    model = copied()
    want = jobs.outputs(model)
    before = sum(p.numel() for p in model.parameters())
    job = jobs.run((Precompute(steps=1001),), model)
    assert job.finish().timesteps == {NAMES[0]: TableSpec(1001), NAMES[1]: TableSpec(1001, NAMES[0])}
    torch.testing.assert_close(jobs.outputs(model), want)
    assert job.notes == {"precompute": {"embedders": 2, "tables": 1}}
    embedder = 256 * 16 + 16 + 16 * 16 + 16
    assert sum(p.numel() for p in model.parameters()) == before - 2 * embedder + 1001 * 16


def stored_names(folder) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


@pytest.mark.parametrize("build", [lambda: jobs.pipeline().transformer, copied], ids=["own", "copies"])
def test_a_checkpoint_holds_tables_alone_and_reloads_without_an_embedder(build, tmp_path):
    model = dither.quantize(build(), RECIPE)
    want = jobs.outputs(model)
    dither.save(model, tmp_path / "saved")
    tables = {f"{name}.time_proj.table" for name, spec in header_of(model).plan.timesteps.items() if not spec.same_as}
    assert {name for name in stored_names(tmp_path / "saved") if "time" in name} == tables
    for again in (dither.load(tmp_path / "saved"), DiTTransformer2DModel.from_pretrained(tmp_path / "saved")):
        assert torch.equal(jobs.outputs(again), want)
        assert header_of(again).plan == header_of(model).plan
        assert not any(p.requires_grad for name, p in again.named_parameters() if name.endswith("table"))
    half = DiTTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    assert half.get_submodule(NAMES[0]).time_proj.table.dtype == torch.bfloat16
    assert torch.equal(
        half.get_submodule(NAMES[0]).time_proj.table, model.get_submodule(NAMES[0]).time_proj.table.bfloat16()
    )


def test_a_pipeline_and_a_plain_module_reload_too(tmp_path):
    pipe = dither.quantize(jobs.pipeline(), RECIPE)
    jobs.assert_reloads(pipe, tmp_path)


def test_tables_are_stored_in_the_dtype_of_what_stays_in_full_precision(tmp_path):
    model = dither.quantize(jobs.pipeline().transformer, RECIPE, storage=torch.float16)
    want = jobs.outputs(model)
    dither.save(model, tmp_path / "saved", storage=torch.float16)
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    assert load_file(file)[f"{NAMES[1]}.time_proj.table"].dtype == torch.float16
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "saved")), want)


def test_a_sampler_between_timesteps_is_told_what_to_do():
    model = dither.quantize(jobs.pipeline().transformer, RECIPE)
    x, labels = torch.zeros(1, 1, 8, 8), torch.tensor([1])
    whole, between = torch.linspace(999, 0, 4), torch.linspace(999, 0, 8)  # as samplers that space noise levels do
    model(x, whole[1:2], labels)
    with pytest.raises(BadValue, match=r"timestep 856\.286: .* quantize without 'precompute'"):
        model(x, between[1:2], labels)
    with pytest.raises(BadValue, match=r"timestep 1500: .* whole timesteps 0 to 999"):
        model(x, torch.tensor([1500]), labels)


def test_pixart_has_one_table_for_all_blocks(tmp_path):
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, cross_attention_dim=16,
        caption_channels=8, in_channels=4,
    ).eval()  # fmt: skip

    def run(of: nn.Module) -> torch.Tensor:
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        text = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            return of(x, text, torch.tensor([3, 999]), {"resolution": None, "aspect_ratio": None}).sample

    want = run(model)
    job = Job(model, adapter_for(model), Bits(4, 8), 0, lambda: ())
    Precompute().run(job)
    assert job.finish().timesteps == {"adaln_single.emb": TableSpec(1000)}
    torch.testing.assert_close(run(model), want)
    with torch.no_grad():
        for stage in (Smooth(data_free=True, calibrate=False, online=True), Assign(weight=Int(8)), Rtn()):
            stage.run(job)
    recipe = Recipe("test", "", Bits(8), describe((Precompute(), Assign(weight=Int(8)), Rtn())))
    torch.manual_seed(0)
    quantized = dither.quantize(type(model).from_config(model.config).eval(), recipe)
    dither.save(quantized, tmp_path / "saved")
    assert torch.equal(run(dither.load(tmp_path / "saved")), run(quantized))


# --- what is refused


@pytest.mark.parametrize("steps", [0, -1, 10**7])
def test_steps_that_make_no_sense_are_named(steps):
    with pytest.raises(BadRecipe, match=rf"precompute\.steps: a table of {steps} timesteps"):
        jobs.run((Precompute(steps=steps),), jobs.pipeline().transformer)


def test_models_without_such_an_embedder_are_named():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(BadRecipe, match=r"precompute: Sequential \(family 'generic'\) has no timestep embedder"):
        Precompute().run(Job(model, adapter_for(model), Bits(8), 0, jobs.calls))
    with pytest.raises(BadRecipe, match=r"precompute: DiTTransformer2DModel .* has no timestep embedder"):
        jobs.run((Precompute(), Precompute()), jobs.pipeline().transformer)


def test_a_model_that_is_not_as_its_plan_says_is_not_saved(tmp_path):
    model = dither.quantize(jobs.pipeline().transformer, RECIPE)
    model.get_submodule(NAMES[1]).time_proj = TimestepTable(3, 16)
    with pytest.raises(DitherError, match=rf"timestep embedder '{NAMES[1]}' is not what the plan says"):
        dither.save(model, tmp_path / "saved")


LAYER = {"transformer_blocks.0.attn1.to_q": LinearSpec(Int(8))}
MISFITS = {
    "no such embedder": ({"nowhere": TableSpec(9)}, {}, "the timestep embedder 'nowhere', which the model does not have"),
    "no embedder": ({"pos_embed": TableSpec(9)}, {}, "timestep embedder 'pos_embed': a PatchEmbed embeds no timestep"),
    "the model": ({"": TableSpec(9)}, {}, "timestep embedder '': a DiTTransformer2DModel embeds no timestep"),
    "also quantized": (
        {NAMES[0]: TableSpec(1000)},
        {f"{NAMES[0]}.timestep_embedder.linear_1": LinearSpec(Int(8))},
        rf"layer '{NAMES[0]}\.timestep_embedder\.linear_1', which the timestep table of '{NAMES[0]}' replaces",
    ),
    "other length": ({NAMES[0]: TableSpec(999), NAMES[1]: TableSpec(1000)}, {}, rf"'{NAMES[0]}\.time_proj\.table' is F32"),
    "shared": (
        {NAMES[0]: TableSpec(1000), NAMES[1]: TableSpec(1000, NAMES[0])}, {}, rf"'{NAMES[1]}\.time_proj\.table' is unknown",
    ),
    "none": ({}, {}, r"tensor '.*' is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("tables", "layers", "says"), MISFITS.values(), ids=MISFITS)
def test_plans_that_do_not_fit_the_model_are_refused(tables, layers, says, tmp_path):
    plan = Plan(LAYER, timesteps={name: TableSpec(1000) for name in NAMES})
    model = tiny.stamped_dit(plan)
    dither.save(model, tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    config = json.loads(file.read_text())
    changed = Plan({**LAYER, **layers}, timesteps=tables)
    file.write_text(json.dumps({**config, "quantization_config": config_of(Header(changed, None, "0.1.0"))}))
    with pytest.raises(BadCheckpoint, match=says):
        DiTTransformer2DModel.from_pretrained(tmp_path / "saved")
    fresh, untouched = tiny.dit(seed=1), tiny.dit(seed=1)
    (weights,) = (tmp_path / "saved").glob("*.safetensors")
    weights.rename(weights.with_name("model.safetensors"))
    with pytest.raises(BadCheckpoint, match=says):
        load_into(fresh, tmp_path / "saved")
    assert tiny.same_state(fresh, untouched)


def test_widths_that_differ_cannot_share(tmp_path):
    model = tiny.stamped_dit(Plan(LAYER, timesteps={name: TableSpec(10) for name in NAMES}))
    save(model, tmp_path / "saved", header_of(model))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    shared = Plan(LAYER, timesteps={NAMES[0]: TableSpec(10), NAMES[1]: TableSpec(10, NAMES[0])})
    config["quantization_config"] = config_of(Header(shared, None, "0.1.0"))
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    other = tiny.dit()
    other.transformer_blocks[1].norm1.emb.timestep_embedder.linear_2 = nn.Linear(16, 8)
    with pytest.raises(BadCheckpoint, match=rf"'{NAMES[1]}' gives 8 channels, and the table of '{NAMES[0]}' has 16"):
        load_into(other, tmp_path / "saved")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_table_of_no_numbers_is_refused(value, tmp_path):
    model = tiny.stamped_dit(Plan(LAYER, timesteps={NAMES[0]: TableSpec(10)}))
    dither.save(model, tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    tensors = load_file(file)
    tensors[f"{NAMES[0]}.time_proj.table"][3, 3] = value
    save_file(tensors, file, {"format": "pt", **metadata_of(tensors, header_of(model).plan)})
    with pytest.raises(BadCheckpoint, match=rf"'{NAMES[0]}\.time_proj\.table' holds values that are infinite, NaN"):
        dither.load(tmp_path / "saved")


def test_static_ranges_and_tables_by_time_go_together(tmp_path):
    static = Assign(weight=Int(8), act=Act(Int(8, False), static=True), time_groups=3, branches=2)
    recipe = Recipe("test", "", Bits(8, 8), describe((Precompute(), static, Rtn(), Ranges())))
    pipe = dither.quantize(jobs.pipeline(), recipe, calibration=dither.Calibration(samples=4, steps=3, calls=3))
    dither.save(pipe.transformer, tmp_path / "saved")
    assert torch.equal(jobs.outputs(dither.load(tmp_path / "saved")), jobs.outputs(pipe.transformer))
