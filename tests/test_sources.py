import json
import logging
import re
import shutil
import struct

import numpy as np
import pytest
import tiny as tiny_models
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file

from dither.errors import BadModel
from dither.integrations.diffusers import ClockReader, register, save_pipeline, stamp
from dither.models import adapter_for
from dither.models.linears import linears_of
from dither.sampling import sampler_for
from dither.sources import open_source
from dither.weightfile import check_safetensors
from dither.zoo import PixelDiTPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


def tiny(**changes):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    return DiTTransformer2DModel(**{**sizes, "in_channels": 3, "num_embeds_ada_norm": 5, **changes})


@pytest.fixture
def transformer(tmp_path):
    tiny().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def pipeline(tmp_path):
    PixelDiTPipeline(tiny(), DDIMScheduler()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def refused(text, named):
    with pytest.raises(BadModel, match=named) as caught:
        open_source(str(text))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_transformer_folder(transformer):
    source = open_source(str(transformer))
    assert (source.name, source.component, source.adapter.family, source.zoo) == ("tiny", "transformer", "dit", None)
    assert source.weight_files == (transformer / WEIGHTS,)
    assert source.weight_bytes == (transformer / WEIGHTS).stat().st_size
    assert not source.model.training
    for name, value in tiny().state_dict().items():
        assert torch.equal(source.model.state_dict()[name], value)
    scheduler = source.pipeline.scheduler.config
    assert (scheduler.timestep_spacing, scheduler.beta_schedule) == ("trailing", "linear")
    assert scheduler.clip_sample  # pixels


def test_latents_are_not_clipped(tmp_path):
    tiny(in_channels=4).save_pretrained(tmp_path / "latent")
    assert not open_source(str(tmp_path / "latent")).pipeline.scheduler.config.clip_sample


def test_pipeline_folder_and_dtype(pipeline):
    source = open_source(str(pipeline), torch.bfloat16)
    assert isinstance(source.pipeline, PixelDiTPipeline)
    assert source.pipeline.transformer is source.model
    assert source.model.dtype == torch.bfloat16
    assert source.weight_files == (pipeline / "transformer" / WEIGHTS,)


def test_sharded_folder(tmp_path):
    tiny().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    source = open_source(str(tmp_path / "sharded"))
    assert len(source.weight_files) > 1
    source.weight_files[1].unlink()
    refused(tmp_path / "sharded", re.escape(source.weight_files[1].name))


def test_zoo():
    source = open_source("zoo:fashion", torch.bfloat16)
    assert (source.name, source.zoo, source.model.dtype) == ("zoo:fashion", "fashion", torch.bfloat16)
    assert source.weight_bytes > 1_000_000
    assert refused("zoo:nothing", "nothing").count("fashion")


def test_facebook_file(tmp_path):
    from models.test_facebook import checkpoint

    torch.save(checkpoint(2, 8), tmp_path / "DiT-S-2.pt")
    source = open_source(str(tmp_path / "DiT-S-2.pt"))
    assert (source.name, source.adapter.family) == ("DiT-S-2", "dit")
    assert isinstance(source.pipeline, PixelDiTPipeline)


def test_a_family_without_a_sampler_has_no_pipeline_of_its_own(tmp_path):
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8, cross_attention_dim=16,
        caption_channels=8,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "pixart")
    source = open_source(str(tmp_path / "pixart"))
    assert (source.adapter.family, source.pipeline) == ("pixart", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_pipeline_opens_like_any_other(tmp_path, dtype):
    register()
    model = tiny_models.dit()
    read = ClockReader(adapter_for(model), model)
    stamp(model, tiny_models.quantize(model, tiny_models.plan(), read))
    pipeline = PixelDiTPipeline(model, DDIMScheduler())
    save_pipeline(pipeline, tmp_path / "packed")
    source = open_source(str(tmp_path / "packed"), dtype)
    assert [layer.name for layer in source.adapter.layers(source.model)] == list(linears_of(model))
    gone = set(linears_of(tiny_models.dit())) - set(linears_of(model))
    assert all("timestep_embedder" in name for name in gone)  # in whose place tables stand
    assert source.adapter.sites(source.model) == adapter_for(model).sites(tiny_models.dit())
    if dtype == torch.float32:
        want, got = (sampler_for(p, 2, 2.0)([0, 1], [0, 1]) for p in (pipeline, source.pipeline))
        assert np.array_equal(want, got)


def test_opening_is_quiet(pipeline, capfd, recwarn):
    heard, logger = [], logging.getLogger("diffusers")
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger.addHandler(handler)
    try:
        open_source(str(pipeline), torch.bfloat16)
        open_source("zoo:fashion", torch.bfloat16)
    finally:
        logger.removeHandler(handler)
    assert heard == []
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


def test_hub(pipeline, monkeypatch):
    monkeypatch.setattr(DiffusionPipeline, "download", classmethod(lambda cls, name: str(pipeline)))
    assert open_source("owner/model").name == "model"

    def offline(cls, name):
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setattr(DiffusionPipeline, "download", classmethod(offline))
    assert "no network" in refused("owner/model", "owner/model")


def test_missing_path(tmp_path):
    refused(tmp_path / "nothing", "nothing")
    refused("nothing", "nothing")


def test_not_a_model(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "model_index.json")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path / "notes.txt", "notes.txt")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "config.json is not readable JSON"),
        ("[]", "config.json is not a JSON object"),
        ('{"model_type": "bert"}', "_class_name"),
        ('{"_class_name": "NobodyTransformer2DModel"}', "NobodyTransformer2DModel"),
        ('{"_class_name": "load_image"}', "load_image"),
        ('{"_class_name": 7}', "_class_name"),
    ],
)
def test_bad_config(transformer, content, named):
    (transformer / "config.json").write_text(content)
    refused(transformer, named)


def test_config_and_weights_disagree(transformer):
    config = json.loads((transformer / "config.json").read_text())
    (transformer / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    refused(transformer, r"transformer_blocks\.2")
    (transformer / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))
    refused(transformer, "tiny")


def test_missing_weights(transformer):
    tensors = load_file(transformer / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if k != "proj_out_2.bias"}, transformer / WEIGHTS)
    refused(transformer, r"proj_out_2\.bias")
    (transformer / WEIGHTS).unlink()
    refused(transformer, "no weights")


def test_pipeline_without_a_denoiser(pipeline):
    shutil.rmtree(pipeline / "transformer")
    refused(pipeline, "denoiser")


def test_unknown_pipeline_class(pipeline):
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps({**index, "_class_name": "NobodyPipeline"}))
    refused(pipeline, "NobodyPipeline")


@pytest.mark.parametrize("keep", [4, 100, -1])
@pytest.mark.parametrize("kind", ["transformer", "pipeline"])
def test_truncated_safetensors(request, kind, keep):
    folder = request.getfixturevalue(kind)
    file = next(folder.rglob(WEIGHTS))
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, re.escape(str(file)))


def header_changed(file, change):
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["proj_out_2.bias"].update(data_offsets=[0, 4]),
        lambda h: h["proj_out_2.bias"].update(shape=[99]),
        lambda h: h["proj_out_2.bias"].update(dtype="F17"),
        lambda h: h["proj_out_2.bias"].pop("shape"),
        lambda h: h.update({"proj_out_2.bias": 3}),
    ],
)
def test_tampered_safetensors(transformer, change):
    check_safetensors(transformer / WEIGHTS)
    header_changed(transformer / WEIGHTS, change)
    sentence = refused(transformer, "tampered")
    assert WEIGHTS in sentence


def test_trailing_bytes(transformer):
    with (transformer / WEIGHTS).open("ab") as stream:
        stream.write(b"x")
    refused(transformer, "longer")
