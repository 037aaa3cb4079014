"""``save`` and ``load`` for pipelines, models of diffusers, and any torch module."""

import jobs
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel

import dither
from dither.errors import BadCheckpoint, BadModel, BadValue, DitherError, Refused
from dither.nn import QLinear


def linears(model):
    return [m for m in model.modules() if isinstance(m, QLinear)]


def test_pipeline(tmp_path):
    pipe = jobs.pipeline()
    assert dither.quantize(pipe, recipe="rtn", bits="w4a8") is pipe
    before = jobs.sample(pipe)
    dither.save(pipe, tmp_path / "out")
    loaded = dither.load(tmp_path / "out")
    assert jobs.same_tensors(loaded.transformer, pipe.transformer)
    assert torch.equal(jobs.sample(loaded), before)


def test_diffusers_loads_what_was_saved(tmp_path):
    pipe = dither.quantize(jobs.pipeline(), "rtn", "w8a8")
    dither.save(pipe, str(tmp_path / "out"))
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(jobs.sample(loaded), jobs.sample(pipe))


def test_model_of_diffusers(tmp_path):
    model = dither.quantize(tiny.dit(), "rtn", "w8a8")
    dither.save(model, tmp_path / "out")
    loaded = dither.load(tmp_path / "out")
    assert isinstance(loaded, DiTTransformer2DModel)
    assert jobs.same_tensors(loaded, model)


def test_any_denoiser(tmp_path):
    """Of a class nobody prepared, with its own sampler, into a freshly built instance."""
    model = tiny.dense()
    dither.quantize(model, "smoothquant", "w8a8", run=lambda: tiny.run(model), settings=["smooth.online=true"])
    assert linears(model)
    before = tiny.run(model)
    dither.save(model, tmp_path / "out")
    fresh = tiny.dense(seed=1)
    assert dither.load(tmp_path / "out", fresh) is fresh
    assert torch.equal(tiny.run(fresh), before)


def test_data_is_needed_and_there_is_no_way_to_get_it():
    with pytest.raises(BadValue, match="run="):
        dither.quantize(tiny.dense(), "smoothquant", settings=["smooth.online=true"])
    with pytest.raises(BadModel, match=r"nothing in \w+ can absorb a channel scale; smooth\.online=true"):
        dither.quantize(tiny.dense(), "smoothquant")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storage_and_dtype(tmp_path, dtype):
    pipe = dither.quantize(jobs.pipeline(), "rtn", "w8a8", storage=torch.bfloat16)
    pictures = jobs.sample(pipe)
    dither.save(pipe, tmp_path / "out", storage=torch.bfloat16)
    assert pipe.transformer.dtype == torch.float32  # saving changes nothing
    loaded = dither.load(tmp_path / "out", dtype=dtype)
    assert next(p.dtype for p in loaded.transformer.parameters() if p.is_floating_point()) == dtype
    scales = [b for m in linears(loaded.transformer) for name, b in m.named_buffers() if name.endswith("scale")]
    assert scales
    assert all(scale.dtype == torch.float32 for scale in scales)
    if dtype == torch.float32:
        assert torch.equal(jobs.sample(loaded), pictures)


def test_folder_that_is_not_empty(tmp_path):
    (tmp_path / "mine").write_text("keep me")
    with pytest.raises(DitherError, match="not an empty folder"):
        dither.save(dither.quantize(tiny.dit(), "rtn"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_what_is_not_quantized(tmp_path):
    with pytest.raises(DitherError, match="not quantized"):
        dither.save(jobs.pipeline(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    jobs.pipeline().save_pretrained(tmp_path / "full")
    with pytest.raises(BadCheckpoint, match="full' is not quantized"):
        dither.load(tmp_path / "full")
    with pytest.raises(BadModel, match="nowhere"):
        dither.load(tmp_path / "nowhere")


def test_twice():
    pipe = dither.quantize(jobs.pipeline(), "rtn")
    with pytest.raises(Refused, match="quantized already"):
        dither.quantize(pipe, "rtn")


def test_no_denoiser():
    with pytest.raises(BadModel, match="str"):
        dither.quantize("zoo:digits")
