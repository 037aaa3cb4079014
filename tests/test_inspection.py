"""Rows of layers, their summary, and bytes from the disk."""

import jobs
import pytest
import tiny
import torch
from safetensors.torch import load_file

import dither
from dither.inspection import describe, estimate, plan_rows, reasons, size_on_disk, stored_dtype, summary
from dither.models import adapter_for


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
    assert len(rows) == 20  # a layer with variants is one layer
    assert sum(int(row[-2]) for row in plan_rows(rows)) == 20
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
