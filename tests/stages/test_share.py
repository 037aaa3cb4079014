"""Parameters that are equal are kept once: in memory, in files, and after loading."""

import json

import jobs
import pytest
import tiny
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file

import dither
from dither.checkpoint import config_of, header_of, metadata_of
from dither.checkpoint.header import Header
from dither.errors import BadCheckpoint, DitherError
from dither.spec import Act, Bits, Int, Plan, Recipe
from dither.stages import Assign, Rtn, Share, describe

EMBEDDERS = [f"transformer_blocks.{i}.norm1.emb" for i in range(2)]
PARTS = ("timestep_embedder.linear_1", "timestep_embedder.linear_2", "class_embedder.embedding_table")
SHARED = {f"{EMBEDDERS[1]}.{part}": f"{EMBEDDERS[0]}.{part}" for part in PARTS}
PLAIN = Assign(weight=Int(4), act=Act(Int(8)), adaln=Int(8))
RECIPE = Recipe("test", "", Bits(4, 8), describe((PLAIN, Rtn(), Share())))


def pipeline():
    """A model whose blocks have copies of one embedder, as converted checkpoints have."""
    pipe = jobs.pipeline()
    first, second = (pipe.transformer.get_submodule(name) for name in EMBEDDERS)
    second.load_state_dict(first.state_dict())
    return pipe


def test_copies_are_kept_once_and_the_model_answers_the_same():
    model = pipeline().transformer
    want, before = jobs.outputs(model), sum(p.numel() for p in model.parameters())
    job = jobs.run((Share(),), model)
    copies = 256 * 16 + 16 + 16 * 16 + 16 + 11 * 16
    assert torch.equal(jobs.outputs(model), want)
    assert job.finish().shared == SHARED
    assert sum(p.numel() for p in model.parameters()) == before - copies
    assert job.notes == {"share": {"modules": 3, "parameters": copies}}


def test_what_differs_in_one_bit_stays():
    model = pipeline().transformer
    with torch.no_grad():
        model.get_submodule(EMBEDDERS[1]).timestep_embedder.linear_1.bias[3] += 1e-6
    job = jobs.run((Share(),), model)
    assert job.finish().shared == {name: owner for name, owner in SHARED.items() if not name.endswith("linear_1")}


def test_quantized_layers_are_not_touched():
    model = pipeline().transformer
    first, second = (model.transformer_blocks[i].attn1.to_q for i in range(2))
    second.load_state_dict(first.state_dict())
    job = jobs.run((PLAIN, Rtn(), Share()), model)
    assert job.finish().shared == SHARED


def test_nothing_is_noted_where_nothing_is_equal():
    job = jobs.run((Share(),), jobs.pipeline().transformer)
    assert (job.notes, job.finish().shared) == ({}, {})


def stored(folder) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


def test_a_checkpoint_holds_them_once_and_reloads(tmp_path):
    model = dither.quantize(pipeline().transformer, RECIPE)
    want = jobs.outputs(model)
    dither.save(model, tmp_path / "saved")
    assert not any(name.startswith(tuple(SHARED)) for name in stored(tmp_path / "saved"))
    for again in (dither.load(tmp_path / "saved"), DiTTransformer2DModel.from_pretrained(tmp_path / "saved")):
        assert torch.equal(jobs.outputs(again), want)
        assert header_of(again).plan.shared == SHARED
        assert again.get_submodule(next(iter(SHARED))).owner is again.get_submodule(SHARED[next(iter(SHARED))])
    half = DiTTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    assert half.get_submodule(next(iter(SHARED))).weight.dtype == torch.bfloat16
    again.save_pretrained(tmp_path / "again")
    assert stored(tmp_path / "again") == stored(tmp_path / "saved")


def test_a_pipeline_and_a_plain_module_reload_too(tmp_path):
    pipe = dither.quantize(pipeline(), RECIPE, storage=torch.float16)
    jobs.assert_reloads(pipe, tmp_path, torch.float16)


def saved(folder):
    """A checkpoint, its plan as JSON, its one weight file."""
    dither.save(dither.quantize(pipeline().transformer, RECIPE), folder)
    (file,) = folder.glob("*.safetensors")
    return json.loads((folder / "config.json").read_text()), file


def test_a_plan_that_shares_what_the_file_holds_no_owner_of_is_refused(tmp_path):
    config, file = saved(tmp_path / "saved")
    owner = next(iter(SHARED.values()))
    plan = header_of(dither.load(tmp_path / "saved")).plan
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(owner)}
    save_file(tensors, file, metadata={"format": "pt", **metadata_of(tensors, plan)})
    with pytest.raises(BadCheckpoint, match=rf"tensor '{owner}\..*' is missing"):
        dither.load(tmp_path / "saved")
    other = Plan(plan.layers, shared={**plan.shared, "norm_out": "proj_out_1"})
    config["quantization_config"] = config_of(Header(other))
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match="'norm_out', which has none"):
        dither.load(tmp_path / "saved")


def test_a_model_that_shares_otherwise_than_its_plan_says_is_not_saved(tmp_path):
    model = dither.quantize(pipeline().transformer, RECIPE)
    name = next(iter(SHARED))
    owner = model.get_submodule(SHARED[name])
    parent, _, leaf = name.rpartition(".")
    own = torch.nn.Linear(owner.in_features, owner.out_features)
    setattr(model.get_submodule(parent), leaf, own)
    with pytest.raises(DitherError, match=rf"do not agree on whose parameters '{name}' reads"):
        dither.save(model, tmp_path / "saved")
    assert tiny.dit().get_submodule(name).in_features == own.in_features
