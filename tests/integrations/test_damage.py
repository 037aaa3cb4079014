"""Damage is found when diffusers loads, and a save that fails leaves nothing behind."""

import json
import os
from pathlib import Path

import diffusers.models.modeling_utils as loading
import pytest
import tiny
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from dither.checkpoint import metadata_of, read_header, verify
from dither.errors import BadCheckpoint, DitherError
from dither.integrations.diffusers import (
    save_pipeline,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


def broken(folder: Path, names: str) -> bool:
    with pytest.raises(BadCheckpoint, match=names):
        DiTTransformer2DModel.from_pretrained(folder)
    return True


def rewrite(folder: Path, change, digests: bool = True) -> None:
    path = folder / WEIGHTS
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    change(tensors)
    own = metadata_of(tensors, read_header(folder).plan) if digests else {}
    save_file(tensors, path, {"format": "pt", **own})


Q = "transformer_blocks.0.attn1.to_q"
K = "transformer_blocks.0.attn1.to_k"  # views
TENSORS = {
    "missing base": (lambda t: t.pop(f"{K}.base.weight_zero"), f"{K}.base.weight_zero' is missing"),
    "codes outside the base": (
        lambda t: t.update({f"{K}.weight_codes": t.pop(f"{K}.base.weight_codes")}),
        "base.weight_codes' is missing",
    ),
    "value of a base": (lambda t: t[f"{K}.base.weight_scale"].neg_(), rf"{K}.base.weight.scale"),
    "missing packed": (lambda t: t.pop(f"{Q}.weight_scale"), f"{Q}.weight_scale' is missing"),
    "missing full": (lambda t: t.pop("pos_embed.proj.bias"), "pos_embed.proj.bias' is missing"),
    "unknown": (lambda t: t.update({f"{Q}.weight": torch.zeros(16, 16)}), f"{Q}.weight' is unknown"),
    "shape": (lambda t: t.update({f"{Q}.weight_codes": torch.zeros(16, 8, dtype=torch.uint8)}), f"{Q}.weight_codes"),
    "dtype": (lambda t: t.update({f"{Q}.weight_scale": torch.ones(16, 1).bfloat16()}), f"{Q}.weight_scale"),
    "value": (lambda t: t[f"{Q}.weight_scale"].fill_(float("nan")), rf"{Q}.weight.scale"),
    "full shape": (lambda t: t.update({"pos_embed.proj.bias": torch.zeros(3)}), "pos_embed.proj.bias"),
}


@pytest.mark.parametrize(("change", "names"), TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("digests", [True, False])
def test_bad_tensors(folder, change, names, digests):
    """Checked by name and value, also where another writer dropped the digests."""
    rewrite(folder, change, digests)
    assert broken(folder, names)


def test_a_flipped_byte(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-3] ^= 4
    (folder / WEIGHTS).write_bytes(data)
    assert broken(folder, "does not match its digest")


def test_a_truncated_file(folder, model, tmp_path):
    """A single file is opened by diffusers before any quantizer is asked: its error names it, as does ``verify``."""
    os.truncate(folder / WEIGHTS, 5000)
    with pytest.raises(OSError, match=WEIGHTS):
        DiTTransformer2DModel.from_pretrained(folder)
    with pytest.raises(BadCheckpoint, match=rf"{WEIGHTS}' is truncated or damaged"):
        verify(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size=4000)
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    os.truncate(shard, 100)
    assert broken(tmp_path / "shards", shard.name)


def edit_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


CONFIGS = {
    "unknown kind": (lambda c: c["plan"]["specs"].append({"kind": "pickle"}), "pickle"),
    "missing field": (lambda c: c.pop("plan"), "'plan'"),
    "layer": (lambda c: c["plan"]["layers"].update({"nowhere.fc": 0}), "'nowhere.fc'"),
    "index": (lambda c: c["plan"]["layers"].update({Q: 1000}), f"'{Q}'"),
    "other plan": (lambda c: c["plan"].update(time_edges=[0.3, 0.71]), "another plan"),
    "version": (lambda c: c.update(version=7), "version 7"),
}


@pytest.mark.parametrize(("change", "names"), CONFIGS.values(), ids=CONFIGS)
def test_a_tampered_config(folder, change, names):
    edit_config(folder, change)
    assert broken(folder, names)


def test_pickled_weights_are_not_read(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert broken(folder, r"\.bin' is not a safetensors file")


def test_save_pipeline_refuses_a_full_folder_and_a_full_precision_model(model, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(DitherError, match="not an empty folder"):
        save_pipeline(model, tmp_path)
    with pytest.raises(DitherError, match="carries no dither header"):
        save_pipeline(tiny.dit(), tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt("stop")], ids=["full", "Ctrl-C"]
)
def test_save_pipeline_leaves_nothing_half_written(model, tmp_path, monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(loading.safetensors.torch, "save_file", fail)
    raised, message = (DitherError, "no space is left") if isinstance(failure, OSError) else (KeyboardInterrupt, "stop")
    with pytest.raises(raised, match=message):
        save_pipeline(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
