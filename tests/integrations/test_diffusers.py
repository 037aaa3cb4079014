"""diffusers loads and saves packed models as its own, and nothing is lost on the way."""

import copy
import importlib
import json
import os
import subprocess
import sys

import diffusers.models.modeling_utils as loading
import pytest
import tiny
import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKL, AutoModel, DDIMScheduler, DiffusionPipeline, DiTPipeline, DiTTransformer2DModel
from diffusers.quantizers import PipelineQuantizationConfig
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from safetensors import safe_open
from safetensors.torch import load_file

import dither
from dither.checkpoint import Header, config_of, header_of, verify
from dither.errors import BadCheckpoint, DitherError, Refused
from dither.integrations.diffusers import (
    DitherConfig,
    DitherQuantizer,
    register,
    save_pipeline,
    stamp,
)
from dither.nn import QActivation, QLinear
from dither.spec import Act, Int, LinearSpec, Plan, Trellis

WEIGHTS = "diffusion_pytorch_model.safetensors"
CALL = {"timestep": torch.tensor([900, 500, 100, 500]), "class_labels": torch.tensor([1, 2, 10, 10])}
"""Three time groups, and the null class: both branches."""

FOR_DIT_PIPELINE = {"num_embeds_ada_norm": 1000, "out_channels": 1}
"""Its null class is 1000, and it wants out_channels written down."""


def pipeline(model: DiTTransformer2DModel) -> DiTPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=1, layers_per_block=1).eval()
    pipe = DiTPipeline(model, vae, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(model: torch.nn.Module) -> torch.Tensor:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.no_grad():
        return model(x, **CALL).sample


def sample(pipe: DiTPipeline) -> torch.Tensor:
    made = torch.Generator().manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    return torch.from_numpy(pipe([1, 2], generator=made, num_inference_steps=3, output_type="np").images)


# --- ways to load


@pytest.mark.parametrize("shard", ["10GB", 4000])
@pytest.mark.parametrize("load", [DiTTransformer2DModel.from_pretrained, AutoModel.from_pretrained])
@pytest.mark.parametrize("device_map", [None, "cpu"])
def test_reload_in_float32_is_bit_exact(model, tmp_path, load, device_map, shard):
    model.save_pretrained(tmp_path, max_shard_size=shard)
    again = load(str(tmp_path), device_map=device_map)
    assert tiny.same_state(model, again)
    assert torch.equal(run(model), run(again))
    assert header_of(again) == header_of(model)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == 4000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", ["10GB", 4000])
def test_reload_in_half_casts_only_what_is_in_full_precision(model, tmp_path, dtype, shard):
    """diffusers casts every floating tensor to torch_dtype; packed layers keep theirs, bit for bit."""
    model.save_pretrained(tmp_path, max_shard_size=shard)
    again = DiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    packed = {f"{n}.{k}" for n, m in model.named_modules() if isinstance(m, QLinear | QActivation) for k in m._buffers}
    for name, value in again.state_dict().items():
        before = model.state_dict()[name]
        kept = name in packed and not name.endswith("_dense")
        assert torch.equal(value, before if kept else before.to(dtype)), name
        assert value.dtype == (before.dtype if kept else dtype), name
    torch.nn.Module.to(model, dtype)  # diffusers' own .to(dtype) refuses, see below
    model.pos_embed.pos_embed = again.pos_embed.pos_embed  # not persistent: from_pretrained leaves it in float32
    assert torch.equal(run(again), run(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dense", [torch.float32, torch.bfloat16])
def test_scales_in_bfloat16_stay_in_it(tmp_path, dtype, dense):
    """Those of trellis codes, whatever all else is stored in and loaded in."""
    name = "transformer_blocks.0.attn1.to_q"
    made = tiny.stamped_dit(Plan({name: LinearSpec(Trellis(2, 8), Act(Int(8)))}))
    before = {key: tensor.clone() for key, tensor in made.get_submodule(name).packed().items()}
    assert before["weight_scale"].dtype == torch.bfloat16
    torch.nn.Module.to(made, dense).save_pretrained(tmp_path)
    again = DiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=dtype)
    found = again.get_submodule(name).packed()
    assert found.keys() == before.keys()
    for key, tensor in found.items():
        assert tensor.dtype == before[key].dtype
        assert torch.equal(tensor, before[key])
    assert again.proj_out_1.weight.dtype == dtype


def test_dtype_of_the_file_may_differ_from_the_one_asked_for(folder, tmp_path):
    half = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    with safe_open(tmp_path / "half" / WEIGHTS, "pt") as handle:
        assert handle.get_slice("pos_embed.proj.weight").get_dtype() == "BF16"
        assert handle.get_slice("transformer_blocks.0.attn1.to_q.weight_scale").get_dtype() == "F32"
    full = DiTTransformer2DModel.from_pretrained(tmp_path / "half")
    assert full.dtype == torch.float32
    again = DiTTransformer2DModel.from_pretrained(tmp_path / "half", torch_dtype=torch.bfloat16)
    assert tiny.same_state(again, half)


def test_modules_that_a_class_keeps_in_float32(folder, monkeypatch):
    monkeypatch.setattr(DiTTransformer2DModel, "_keep_in_fp32_modules", ["proj_out_1", "attn1"])
    again = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert again.proj_out_1.weight.dtype == torch.float32
    assert again.proj_out_2.weight.dtype == torch.bfloat16
    layer = again.transformer_blocks[0].attn1.to_q
    assert (layer.bias.dtype, layer.weight_scale.dtype) == (torch.float32, torch.float32)
    assert layer.weight_codes.dtype == torch.uint8


def test_shards_loaded_in_parallel(model, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "HF_ENABLE_PARALLEL_LOADING", True)
    model.save_pretrained(tmp_path, max_shard_size=4000)
    again = DiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    q = "transformer_blocks.0.attn1.to_q.weight_scale"
    assert torch.equal(again.state_dict()[q], model.state_dict()[q])
    assert all(v.device.type == "cpu" for v in again.state_dict().values())


def test_offloading_hooks_of_accelerate(folder, model):
    again = DiTTransformer2DModel.from_pretrained(folder)
    cpu_offload(again, execution_device=torch.device("cpu"))
    assert torch.equal(run(again), run(model))


def test_saving_again_gives_the_same_files(folder, tmp_path):
    DiTTransformer2DModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    one, two = load_file(folder / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert set(one) == set(two)
    assert all(torch.equal(one[k], two[k]) for k in one)
    configs = [json.loads((p / "config.json").read_text()) for p in (folder, tmp_path / "again")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    verify(tmp_path / "again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_pipeline(tmp_path, dtype):
    pipe = pipeline(tiny.stamped_dit(tiny.plan(), **FOR_DIT_PIPELINE))
    save_pipeline(pipe, tmp_path / "pipe", max_shard_size=9000)
    again = DiffusionPipeline.from_pretrained(tmp_path / "pipe", torch_dtype=dtype)
    assert isinstance(again.transformer.transformer_blocks[0].attn1.to_q, QLinear)
    if dtype == torch.float32:
        assert torch.equal(sample(pipe), sample(again))
    else:
        assert (sample(pipe) - sample(again)).abs().mean() < 0.05
    again.save_pretrained(tmp_path / "again")
    assert tiny.same_state(
        DiTPipeline.from_pretrained(tmp_path / "again", torch_dtype=dtype).transformer, again.transformer
    )
    assert verify(tmp_path / "again") == [tmp_path / "again" / "transformer"]


def test_nothing_dense_is_ever_made(folder, monkeypatch):
    """Quantized layers go from meta to packed; their dense weights are never given memory."""
    made = []
    real = DitherQuantizer._process_model_before_weight_loading

    def look(self, model, **kwargs):
        made.extend(p.device.type for p in model.parameters())
        real(self, model, **kwargs)
        made.extend(b.device.type for m in model.modules() if isinstance(m, QLinear) for b in m.buffers())

    monkeypatch.setattr(DitherQuantizer, "_process_model_before_weight_loading", look)
    DiTTransformer2DModel.from_pretrained(folder)
    assert set(made) == {"meta"}


# --- the clock


def test_time_groups_and_branches_work_after_reload(folder):
    again = DiTTransformer2DModel.from_pretrained(folder)
    x = torch.randn(1, 1, 8, 8).expand(4, 1, 8, 8)
    levels, labels = torch.tensor([100, 500, 900, 500]), torch.tensor([1, 1, 1, 10])
    layer = again.transformer_blocks[0].attn1.to_out[0]
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append(module.clock.row.clone()))
    with torch.no_grad():
        y = again(x, timestep=levels, class_labels=labels).sample
        alone = [again(x[:1], levels[i : i + 1], labels[i : i + 1]).sample for i in range(4)]
    assert seen[0].tolist() == [0, 2, 4, 3]  # time group * 2 + branch; noise level is timestep / 1000
    torch.testing.assert_close(y, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_a_copy_has_its_own_clock(folder):
    again = DiTTransformer2DModel.from_pretrained(folder)
    twin = copy.deepcopy(again)
    clocks = {id(m.clock) for m in twin.modules() if isinstance(m, QLinear)}
    assert len(clocks) == 1
    assert clocks.isdisjoint(id(m.clock) for m in again.modules() if isinstance(m, QLinear))
    assert torch.equal(run(twin), run(again))


# --- what must be refused


def test_casts(folder):
    """bfloat16() and double() are right (scales stay); half(), float() and to(dtype) are refused by diffusers."""
    model = DiTTransformer2DModel.from_pretrained(folder)
    for cast in (model.half, model.float, lambda: model.to(torch.bfloat16)):
        with pytest.raises(ValueError, match="quantized model"):
            cast()
    wanted = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert tiny.same_state(model.bfloat16(), wanted)


REFUSALS = {
    "low_cpu_mem_usage": ({"low_cpu_mem_usage": False}, ValueError, "low_cpu_mem_usage"),
    "float8": ({"torch_dtype": torch.float8_e4m3fn}, Refused, "float8"),
    "disk": ({"device_map": {"": "disk"}, "offload_folder": "off"}, Refused, "disk"),
    "offload": ({"offload_state_dict": True}, BadCheckpoint, "offload_state_dict"),
}


@pytest.mark.parametrize(("options", "raised", "message"), REFUSALS.values(), ids=REFUSALS)
def test_options_that_would_lose_bits(folder, tmp_path, monkeypatch, options, raised, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(raised, match=message):
        DiTTransformer2DModel.from_pretrained(folder, **options)


def test_operations_that_would_lose_bits(model, tmp_path):
    with pytest.raises(Refused, match="full-precision one"):
        model.dequantize()
    with pytest.raises(Refused, match="safetensors only"):
        model.save_pretrained(tmp_path, safe_serialization=False)


def test_a_diffusers_without_the_hooks_that_keep_scales(folder, monkeypatch):
    """Older ones round scales to torch_dtype, unseen: refused, as is from_single_file."""
    monkeypatch.setattr(DitherQuantizer, "maybe_update_loaded_keys", lambda self, keys, files: keys)
    with pytest.raises(Refused, match=r"from_pretrained of a folder, and diffusers 0\.39"):
        DiTTransformer2DModel.from_pretrained(folder)


def test_quantizing_while_loading_is_refused(tmp_path):
    tiny.dit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="require the model to be pre-quantized"):
        DiTTransformer2DModel.from_pretrained(tmp_path, quantization_config=DitherConfig(Header(tiny.plan())))


def test_a_config_beside_a_packed_checkpoint_is_not_used(tmp_path):
    pipe = pipeline(tiny.stamped_dit(tiny.timeless(), **FOR_DIT_PIPELINE))
    pipe.save_pretrained(tmp_path)
    mapping = PipelineQuantizationConfig(quant_mapping={"transformer": DitherConfig(Header(Plan()))})
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        again = DiTPipeline.from_pretrained(tmp_path, quantization_config=mapping)
    assert header_of(again.transformer) == header_of(pipe.transformer)


def test_without_importing_dither(folder):
    """diffusers' own message names the method."""
    code = f"from diffusers import DiTTransformer2DModel as M; M.from_pretrained({str(folder)!r})"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert "ValueError: Unknown quantization type, got dither" in done.stderr


def test_importing_dither_registers(monkeypatch):
    monkeypatch.delitem(AUTO_QUANTIZER_MAPPING, "dither")
    importlib.reload(dither)
    assert AUTO_QUANTIZER_MAPPING["dither"] is DitherQuantizer


def test_register_is_idempotent():
    before = dict(AUTO_QUANTIZER_MAPPING)
    register()
    assert before == AUTO_QUANTIZER_MAPPING


def test_config_is_what_diffusers_needs():
    config = DitherConfig(Header(tiny.plan(), None, "0.1.0"))
    assert config.quant_method.value == "dither"
    json.dumps(config.to_dict())  # diffusers does so on every load
    assert DitherConfig.from_dict(config.to_dict()).header == config.header
    assert '"dither"' in repr(config)


def test_stamp_wants_the_plan_to_be_true():
    with pytest.raises(DitherError, match="not quantized as the plan says"):
        stamp(tiny.dit(), Header(tiny.plan()))


def test_config_stays_small(folder):
    plan = {f"transformer_blocks.{i}.attn1.to_q": tiny.RICH for i in range(1000)}
    assert len(json.dumps(config_of(Header(Plan(plan))))) < 60_000
