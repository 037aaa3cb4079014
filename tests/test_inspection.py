"""Rows of layers, their summary, and bytes from the disk."""

import dataclasses

import jobs
import pytest
import tiny
import torch
from safetensors.torch import load_file

import dither
from dither.clock import Clock
from dither.errors import BadValue
from dither.inspection import describe, estimate, plan_rows, reasons, size_on_disk, stays, stored_dtype, summary
from dither.models import adapter_for
from dither.spec import (
    Act,
    AttentionSpec,
    Codebook,
    Int,
    LinearSpec,
    Nested,
    Plan,
    TableSpec,
    Timed,
    TwoRegion,
    View,
    Views,
)


def rows_of(model):
    return describe(model, adapter_for(model))


def test_full_precision():
    rows = rows_of(tiny.dit())
    assert len(rows) == 20
    assert {r["weight"] for r in rows} == {None}
    assert summary(rows)["layers"] | {"rows": 0} == {"quantized": 0, "total": 20, "simulated": 0, "rows": 0}
    assert summary(rows)["kernels"] == {}
    kinds = {kind for some in reasons(rows).values() for kind in some}
    assert kinds == {"embed", "adaln", "qkv", "attn_out", "fc1", "fc2", "final"}


def test_every_kind_of_spec_has_a_row_and_short_words():
    model = tiny.stamped_dit(tiny.plan())
    rows = rows_of(model)
    assert [r["name"] for r in rows if r["weight"] is None and r["act"] is None and r["reason"] is None] == []
    assert len(rows) == 16 + 1 + 2  # a layer with variants is one layer, an attention another; tables are no linears
    assert sum(int(row[-2]) for row in plan_rows(rows)) == 19
    assert not any(" sym" in cell or "dynamic" in cell for row in plan_rows(rows) for cell in row)


def test_bytes_are_those_on_the_disk(tmp_path):
    pipe = dither.quantize(jobs.pipeline(), "rtn", "w4a8")
    expected = estimate(jobs.pipeline().transformer, rows_of(pipe.transformer), torch.float32)
    dither.save(pipe, tmp_path / "out")
    files = list((tmp_path / "out/transformer").glob("*.safetensors"))
    size = size_on_disk(pipe.transformer, files, 1000)
    assert size["file_bytes"] == files[0].stat().st_size
    header = 8 + int.from_bytes(files[0].read_bytes()[:8], "little")
    assert size["file_bytes"] - header == pytest.approx(expected["file_bytes"], abs=64)
    layers = [r for r in rows_of(pipe.transformer) if r["weight"] is not None]
    stored = sum(
        t.numel() * t.element_size()
        for name, t in load_file(files[0]).items()
        if any(name.startswith(f"{r['name']}.") for r in layers)
    )
    weights = sum(r["shape"][0] * r["shape"][1] for r in layers)
    assert size["bits_per_weight"] == 8 * stored / weights
    assert sum(r["bits_per_weight"] * r["shape"][0] * r["shape"][1] for r in layers) == pytest.approx(8 * stored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_dtype(tmp_path, dtype):
    torch.nn.Module.to(tiny.dit(), dtype).save_pretrained(tmp_path)
    assert stored_dtype(list(tmp_path.glob("*.safetensors"))) == dtype
    assert stored_dtype([]) == torch.float32


# --- attentions


def test_a_quantized_attention_is_told_and_simulated():
    name = "transformer_blocks.0.attn1"
    side, probs = Act(Int(4, False, group=8)), Act(TwoRegion(8), static=True)
    plan = Plan({f"{name}.to_q": tiny.W8A8}, attention={name: AttentionSpec(side, side, None, probs)})
    model = tiny.stamped_dit(plan)
    rows = rows_of(model)
    assert [r["name"] for r in rows if r["kind"] == "attention"] == [name]
    row = rows[-1]
    assert row["act"] == "q k int4 asym per token, group 8 dynamic; probs two-region8 unsigned per tensor static"
    assert (row["weight"], row["simulated"], row["reason"]) == (None, True, None)
    found = summary(rows)
    assert (found["layers"]["quantized"], found["layers"]["simulated"]) == (2, 1)
    assert sum(found["kernels"].values()) == 2
    shown = next(row for row in plan_rows(rows) if row[0] == "attention")
    assert shown[1:4] == ("full", row["act"].replace(" dynamic", ""), "simulated")
    assert describe(tiny.dit(), adapter_for(model), plan.layers, Clock(), plan.attention) == rows
    assert not any(r["kind"] == "attention" for r in describe(tiny.dit(), adapter_for(model)))


# --- timestep tables


def test_a_timestep_table_is_told_in_place_of_its_embedder():
    first, second = (f"transformer_blocks.{i}.norm1.emb" for i in range(2))
    tables = {first: TableSpec(100), second: TableSpec(100, first)}
    model = tiny.stamped_dit(Plan({"transformer_blocks.0.attn1.to_q": tiny.W8A8}, timesteps=tables))
    rows = rows_of(model)
    assert not any("timestep_embedder" in r["name"] for r in rows)
    told = {r["name"]: r for r in rows if r["kind"] == "table"}
    assert list(told) == [first, second]
    assert (told[first]["shape"], told[first]["reason"]) == ([100, 16], "precomputed at 100 timesteps")
    assert (told[second]["shape"], told[second]["reason"]) == (
        [0, 0],
        "precomputed, and stored once with others that give the same",
    )
    assert ("table", "full", "full", "-", "2", "1,600") in plan_rows(rows)
    assert summary(rows)["layers"]["quantized"] == 1
    assert {"name": f"{first}.time_proj", "type": "TimestepTable", "parameters": 1600} in stays(model)
    expected = estimate(model, rows, torch.float32)["file_bytes"]
    dense = tiny.stamped_dit(Plan({"transformer_blocks.0.attn1.to_q": tiny.W8A8}))
    embedder = 256 * 16 + 16 + 16 * 16 + 16
    assert estimate(dense, rows_of(dense), torch.float32)["file_bytes"] - expected == 4 * (2 * embedder - 1600)


def test_what_shares_the_parameters_of_others_is_told_and_not_counted():
    first, second = (f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table" for i in range(2))
    layers = {"transformer_blocks.0.attn1.to_q": tiny.W8A8}
    model, dense = tiny.stamped_dit(Plan(layers, shared={second: first})), tiny.stamped_dit(Plan(layers))
    rows = rows_of(model)
    assert [r for r in rows if r["kind"] == "shared"] == rows[-1:]
    assert (rows[-1]["name"], rows[-1]["reason"]) == (second, "stored once with others that are equal")
    sizes = [estimate(m, rows_of(m), torch.float32)["file_bytes"] for m in (model, dense)]
    assert sizes[1] - sizes[0] == 4 * 11 * 16
    assert estimate(dense, rows_of(dense), torch.float32, {second: first})["file_bytes"] == sizes[0]


# --- widths that change with the noise level


def row_of(name: str) -> dict:
    return next(r for r in rows_of(tiny.stamped_dit(tiny.plan())) if r["name"] == name)


def test_views_are_one_weight_at_several_widths():
    row = row_of("transformer_blocks.0.attn1.to_k")
    assert row["weight"] == "8 | 4 | 5 of int8 asym per row"
    assert row["act"] == "int8 sym per token dynamic | int6 asym per token dynamic | full precision"
    assert (row["kernel"], row["simulated"]) == (f"{tiny.INTEGER} | {tiny.WEIGHT_ONLY}", False)
    assert row["online"] == ["pre_scale", "rotation"]
    assert row["bank_bytes"] == 0
    # codes, scales and zeros of 16 rows, online scales, signs, and the bias
    assert row["bits_per_weight"] == 8 * (16 * 16 + 16 * 5 + 16 * 4 + 16 + 16 * 4) / 256
    assert row["by_time"] == [  # the select (0, 0, 1, 1, 2, 1) by group and branch: the wider branch is told
        {"low": 0.0, "high": 0.3, "weight_bits": 8, "act_bits": 8},
        {"low": 0.3, "high": 0.7, "weight_bits": 4, "act_bits": 6},
        {"low": 0.7, "high": 1.0, "weight_bits": 5, "act_bits": None},
    ]


def test_banks_are_all_stored():
    row = row_of("transformer_blocks.0.ff.net.2")
    assert row["by_time"] == [
        {"low": 0.0, "high": 0.3, "weight_bits": 8, "act_bits": 8},
        {"low": 0.3, "high": 1.0, "weight_bits": 4, "act_bits": 8},  # equal neighbours are one
    ]
    assert row["bank_bytes"] == 16 * 64 // 2 + 16 * 4  # the bank of 4 bits
    assert row_of("transformer_blocks.0.attn1.to_q")["by_time"] is None
    assert row_of("transformer_blocks.0.attn1.to_q")["bank_bytes"] == 0
    assert row_of("proj_out_1")["by_time"] is None


def test_a_plan_with_views_is_described_as_the_model_that_it_becomes():
    plan, model = dataclasses.replace(tiny.plan(), timesteps={}), tiny.dit()
    clock = Clock(plan.time_edges, plan.branches)
    ahead = describe(model, adapter_for(model), plan.layers, clock, plan.attention)
    assert ahead == rows_of(tiny.stamped_dit(plan))
    with pytest.raises(BadValue, match="6 rows of a clock that has 1"):
        describe(model, adapter_for(model), plan.layers)


def test_the_estimate_counts_views_once_and_banks_each(tmp_path):
    model, dense = tiny.stamped_dit(dataclasses.replace(tiny.plan(), timesteps={})), tiny.dit()
    expected = estimate(dense, rows_of(model), torch.float32)["file_bytes"]
    dither.save(model, tmp_path / "m")
    (file,) = (tmp_path / "m").glob("*.safetensors")
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - header == pytest.approx(expected + 96, abs=64)  # tables of the attention


def running(plan: Plan, tmp_path) -> tuple[float | None, float | None]:
    model = tiny.stamped_dit(plan)
    dither.save(model, tmp_path / "m")
    size = size_on_disk(model, list((tmp_path / "m").glob("*.safetensors")), 1000)
    return size["running_bits_per_weight"], size["running_bits_per_activation"]


def test_running_bits_are_means_over_weights_and_time(tmp_path):
    q, fc2 = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2"
    act8, act4 = Act(Int(8)), Act(Int(4))
    views = Views(LinearSpec(Int(8), act8), (View(8, act8), View(4, act4)), (1, 0, 0, 0, 1, 1))
    plan = Plan({q: LinearSpec(Int(6), act8), fc2: views}, (0.3, 0.7), 2)
    # fc2 has four times the weights of q; 6 bits on average for 0 to 0.3, 8 to 0.7, 4 to 1
    mean = 0.3 * 6 + 0.4 * 8 + 0.3 * 4
    assert running(plan, tmp_path) == pytest.approx(((6 + 4 * mean) / 5, (8 + 4 * mean) / 5))


def test_running_bits_of_what_is_in_full_precision(tmp_path):
    q, k, v = (f"transformer_blocks.0.attn1.to_{x}" for x in "qkv")
    timed = Timed((LinearSpec(None, Act(Int(8))), LinearSpec(Codebook(2, 16))), (0, 0, 0, 0, 1, 1))
    out = LinearSpec(None, None, 1)  # transformed, not quantized: not counted
    plan = Plan(
        {
            "transformer_blocks.0.attn1.to_out.0": out,
            q: timed,
            k: LinearSpec(Nested(Int(8), 3), Act(Int(6))),
            v: LinearSpec(Int(2)),
        },
        (0.25, 0.5),
        2,
    )
    # a dense weight has 32 bits; inputs that ever are in full precision are left out
    assert running(plan, tmp_path) == pytest.approx(((0.5 * 32 + 0.5 * 2 + 3 + 2) / 3, 6))
    assert running(Plan({v: LinearSpec(Int(2))}), tmp_path / "other") == (2, None)
