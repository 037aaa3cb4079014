"""Bits per weight against a count by hand, and what reports say of each layer."""

import json

import jobs
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn

import dither
from dither.inspection import describe, estimate, plan_rows, size_on_disk, stays, stored_dtype, summary
from dither.models import adapter_for
from dither.nn import QLinear, TimedLinear
from dither.quantization import plan_ahead, resolve_recipe
from dither.spec import (
    Act,
    Codebook,
    Int,
    LinearSpec,
    LowRank,
    Nested,
    Plan,
    Rotation,
    Spec,
    Timed,
    Trellis,
    View,
    Views,
)

LAYER = "transformer_blocks.0.attn1.to_q"  # (16, 16), with a bias

BY_HAND = {  # bits of all stored tensors over 16 * 16 weights; the bias is 16 float32
    "w8": (LinearSpec(Int(8)), 16 * 16 * 8 + 16 * 32 + 16 * 32),
    "w4 group": (LinearSpec(Int(4, group=4)), 16 * 16 * 4 + 16 * 4 * 32 + 16 * 32),
    "w3 asym": (LinearSpec(Int(3, False)), 16 * 6 * 8 + 16 * (32 + 8) + 16 * 32),
    "nested": (LinearSpec(Nested(Int(8), 4)), 16 * 16 * 8 + 16 * 32 + 16 * 32),
    "views": (
        Views(LinearSpec(Int(6, False), pre_scale=1), (View(6), View(3, Act(Int(8)))), (0, 0, 1, 1, 0, 0)),
        16 * 12 * 8 + 16 * (32 + 8) + 16 * 32 + 16 * 32,
    ),
    "banks": (Timed((LinearSpec(Int(8)), LinearSpec(Int(4))), (0,) * 6), 16 * 16 * 12 + 2 * 16 * 32 + 16 * 32),
    "trellis": (LinearSpec(Trellis(3)), 16 * 16 * 3 + 16 * 16 + 16 * 32),
    "codebook": (LinearSpec(Codebook(2, 16)), 16 * 8 * 4 + 16 * 2 * 32 + 16 * 32),
    "w8a8 static": (LinearSpec(Int(8), Act(Int(8, False), True, rows=6)), 16 * 16 * 8 + 16 * 32 + 6 * (32 + 8) + 16 * 32),
    "scaled rotated low rank": (
        LinearSpec(Int(2), None, 1, Rotation(16), LowRank(2)),
        16 * 16 * 2 + 16 * 32 + 16 * 32 + 16 * 8 + 2 * 2 * 16 * 32 + 16 * 32,
    ),
    "act only": (LinearSpec(None, Act(Int(8))), 16 * 16 * 32 + 16 * 32),
}  # fmt: skip


def quantized(spec: Spec) -> nn.Module:
    return tiny.stamped_dit(Plan({LAYER: spec}, (0.3, 0.7), 2))


def row_of(model: nn.Module, name: str = LAYER) -> dict:
    return next(r for r in describe(model, adapter_for(model)) if r["name"] == name)


@pytest.mark.parametrize(("spec", "bits"), BY_HAND.values(), ids=BY_HAND)
def test_bits_per_weight_is_a_count_by_hand(spec, bits, tmp_path):
    model = quantized(spec)
    assert row_of(model)["bits_per_weight"] == bits / 256
    dither.save(model, tmp_path / "m")
    files = list((tmp_path / "m").glob("*.safetensors"))
    size = size_on_disk(model, files, 10**6)
    assert size["bits_per_weight"] == bits / 256  # read from the disk, the same
    assert size["file_bytes"] == sum(f.stat().st_size for f in files)
    assert size["ratio"] == 10**6 / size["file_bytes"]
    parameters = sum(p.numel() for p in tiny.dit().parameters())
    assert size["model_bits_per_weight"] == pytest.approx(8 * size["file_bytes"] / parameters)


def test_a_plan_ahead_says_what_the_model_will_be():
    pipe = jobs.pipeline()
    recipe = resolve_recipe("smoothquant", "w4a8")
    ahead = describe(pipe.transformer, adapter_for(pipe.transformer), plan_ahead(pipe, recipe).specs)
    dither.quantize(pipe, recipe, calibration=dither.Calibration(samples=2, steps=2))
    assert describe(pipe.transformer, adapter_for(pipe.transformer)) == ahead


def test_every_linear_has_a_row_and_kept_ones_a_reason():
    model = tiny.stamped_dit(tiny.linears())
    rows = describe(model, adapter_for(model))
    assert [r["name"] for r in rows] == [layer.name for layer in adapter_for(model).layers(tiny.dit())]
    keys = {"name", "kind", "shape", "weight", "act", "kernel", "simulated", "bits_per_weight", "reason"}
    for row in rows:
        assert keys <= set(row)
        done = row["weight"] is not None or row["act"] is not None
        assert done == (row["name"] in tiny.plan().layers)
        assert done == (row["reason"] is None)
        assert done == (row["bits_per_weight"] is not None)
    reasons = {r["name"]: r["reason"] for r in rows}
    assert "small" in reasons["proj_out_2"]
    assert reasons["transformer_blocks.1.ff.net.0.proj"] is None
    assert json.loads(json.dumps(rows)) == rows


def test_kernels_and_simulation_are_told_per_layer():
    model = tiny.stamped_dit(tiny.plan())
    rows = {r["name"]: r for r in describe(model, adapter_for(model))}
    assert (rows[LAYER]["kernel"], rows[LAYER]["simulated"]) == (tiny.INTEGER, False)
    act_only = rows["transformer_blocks.1.ff.net.2"]
    assert (act_only["kernel"], act_only["simulated"], act_only["online"]) == (
        "reference",
        True,
        ["pre_scale", "time_bias"],
    )
    assert rows["transformer_blocks.0.norm1.linear"]["kernel"] == tiny.WEIGHT_ONLY
    assert rows["transformer_blocks.0.attn1.to_v"]["online"] == ["pre_scale", "rotation", "lowrank", "time_bias"]


def test_a_layer_with_variants_counts_all_of_them():
    model = tiny.stamped_dit(tiny.plan())
    row = row_of(model, "transformer_blocks.0.ff.net.2")
    module = model.get_submodule("transformer_blocks.0.ff.net.2")
    assert isinstance(module, TimedLinear)
    stored = sum(8 * t.numel() * t.element_size() for t in module.state_dict().values())
    assert row["bits_per_weight"] == stored / (16 * 64)
    assert row["kind"] == "fc2"
    assert row["weight"] == "int8 sym per row | int4 sym per row"


def test_the_summary_counts():
    model = tiny.stamped_dit(tiny.linears())
    rows = describe(model, adapter_for(model))
    found = summary(rows)
    assert found["layers"]["quantized"] == len(tiny.plan().layers)
    assert found["layers"]["total"] == len(rows)
    assert found["layers"]["simulated"] == sum(r["simulated"] for r in rows)
    assert sum(found["kernels"].values()) == len(tiny.plan().layers)
    assert sum(int(g[-2]) for g in plan_rows(rows)) == len(rows)
    weights = sum(r["shape"][0] * r["shape"][1] for r in rows)
    assert sum(int(g[-1].replace(",", "")) for g in plan_rows(rows)) == weights


@pytest.mark.parametrize("storage", [torch.float32, torch.float16])
def test_the_estimate_is_near_the_file(storage, tmp_path):
    pipe = jobs.pipeline(num_attention_heads=8)
    recipe = resolve_recipe("rtn", "w8a8")
    adapter = adapter_for(pipe.transformer)
    rows = describe(pipe.transformer, adapter, plan_ahead(pipe, recipe).specs)
    guess = estimate(pipe.transformer, rows, storage)
    assert guess["peak_bytes"] > sum(p.numel() * 4 for p in pipe.transformer.parameters())
    dither.quantize(pipe, recipe, storage=storage)
    dither.save(pipe.transformer, tmp_path / "m", storage=storage)
    size = sum(f.stat().st_size for f in (tmp_path / "m").glob("*.safetensors"))
    assert guess["file_bytes"] == pytest.approx(size, rel=0.1)


def test_what_is_no_linear_is_listed():
    model = tiny.dit()
    found = {r["name"]: r["parameters"] for r in stays(model)}
    linears = sum(p.numel() for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters())
    assert sum(found.values()) + linears == sum(p.numel() for p in model.parameters())


def test_the_stored_dtype_is_that_of_most_numbers(tmp_path):
    save_file(
        {"a": torch.zeros(9, dtype=torch.bfloat16), "b": torch.zeros(4), "c": torch.zeros(99, dtype=torch.int8)},
        tmp_path / "x.safetensors",
    )
    save_file({"d": torch.zeros(4)}, tmp_path / "y.safetensors")
    assert stored_dtype([tmp_path / "x.safetensors", tmp_path / "y.safetensors"]) == torch.bfloat16
    assert stored_dtype([tmp_path / "y.safetensors"]) == torch.float32
    assert stored_dtype([]) == torch.float32


def test_a_dense_model_has_no_bits_of_quantized_weights(tmp_path):
    model = tiny.dit()
    model.save_pretrained(tmp_path)
    size = size_on_disk(model, list(tmp_path.glob("*.safetensors")), 100)
    assert size["bits_per_weight"] is None
    assert size["model_bits_per_weight"] == pytest.approx(32, rel=0.2)
    assert not any(isinstance(m, QLinear) for m in model.modules())
