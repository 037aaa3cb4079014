"""Plans that do not fit and files that were damaged: refused with the thing named, the model untouched."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dither.checkpoint import (
    Header,
    config_of,
    header_of,
    load_into,
    read_header,
    save,
    verify,
)
from dither.errors import BadCheckpoint
from dither.nn import QLinear
from dither.spec import Act, Codebook, Int, LinearSpec, LowRank, Nested, Rotation, Timed, Trellis, View, Views

INDEX = "model.safetensors.index.json"


HUGE = 10**30
MISFITS = {
    "no such layer": ({"fourth": tiny.W8A8}, "'fourth'"),
    "not a linear": ({"": tiny.W8A8}, "''"),
    "group": ({"first": LinearSpec(Int(4, group=5))}, "'first'.*group size 5"),
    "act group": ({"first": LinearSpec(Int(8), Act(Int(8, group=5)))}, "'first'.*group 5"),
    "rotation": ({"first": LinearSpec(Int(8), rotation=Rotation(5))}, "'first'.*block 5"),
    "huge rotation": ({"first": LinearSpec(Int(8), rotation=Rotation(HUGE))}, "'first'"),
    "huge rank": ({"first": LinearSpec(Int(8), lowrank=LowRank(HUGE))}, "'first'.*rank"),
    "rows": ({"first": LinearSpec(Int(8), Act(Int(8), True, rows=HUGE))}, "'first'.*rows"),
    "no rows": ({"first": LinearSpec(Int(8), Act(Int(8), True, rows=0))}, "'first'.*rows"),
    "pre-scale": ({"first": LinearSpec(Int(8), pre_scale=2)}, "'first'.*pre-scale"),
    "biases": ({"first": LinearSpec(Int(8), time_bias=2)}, "'first'.*table of biases has 2 rows"),
    "huge table of biases": ({"first": LinearSpec(Int(8), time_bias=HUGE)}, "'first'.*table of biases"),
    "negative table of biases": ({"first": LinearSpec(Int(8), time_bias=-1)}, "'first'.*table of biases"),
    "select": ({"first": Timed((tiny.W8A8,), (0,))}, "'first' selects"),
    "select of views": ({"first": Views(tiny.W8A8, (View(8),), (0, 0))}, "'first' selects for 2"),
    "nested group": ({"first": LinearSpec(Nested(Int(4, group=5), 2))}, "'first'.*group size 5"),
    "group of a view": ({"first": Views(LinearSpec(Int(8)), (View(8, Act(Int(8, group=5))),), (0,) * 6)}, "'first'.*5"),
    "rows of a view": (
        {"first": Views(LinearSpec(Int(8)), (View(8, Act(Int(8), rows=HUGE)),), (0,) * 6)},
        "'first'.*rows",
    ),
    "rotation of views": ({"first": Views(LinearSpec(Int(8), rotation=Rotation(5)), (View(8),), (0,) * 6)}, "block 5"),
    "codebook": ({"first": LinearSpec(Codebook(3, 16))}, "'first'"),
    "tiles": ({"first": LinearSpec(Trellis(2, 8, 5, 5))}, "'first'.*tiles of 5 x 5"),
    "huge tiles": ({"first": LinearSpec(Trellis(2, 8, HUGE, HUGE))}, "'first'.*tiles"),
}


@pytest.mark.parametrize(("layers", "names"), MISFITS.values(), ids=MISFITS)
def test_plans_that_do_not_fit_the_model_are_refused(folder, layers, names):
    plan = dataclasses.replace(tiny.PLAN, layers={**tiny.PLAN.layers, **layers})
    rewrite_config(folder, config_of(Header(plan, None, "0.1.0")))
    assert refused(folder, names)


def rewrite_config(folder: Path, config: object) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))


def refused(folder: Path, names: str) -> bool:
    """Loading is refused with a message that names the thing, and the model stays as it was."""
    fresh, untouched = tiny.dense(), tiny.dense()
    with pytest.raises(BadCheckpoint, match=names):
        load_into(fresh, folder, tiny.read)
    return tiny.same_state(fresh, untouched) and not any(isinstance(m, QLinear) for m in fresh.modules())


def rewrite_weights(folder: Path, change, digests: bool = False) -> None:
    """Change the tensors; keep the old digests, or (as one who knows the format would) renew them."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as handle:
        metadata = handle.metadata()
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    change(tensors)
    if digests:
        from dither.checkpoint import metadata_of

        metadata = {"format": "pt", **metadata_of(tensors, read_header(folder).plan)}
    save_file(tensors, path, metadata)


def test_truncated_file(folder):
    path = folder / "model.safetensors"
    for size in (0, 4, 200, path.stat().st_size - 1):
        os.truncate(path, size)
        assert refused(folder, "model.safetensors' is truncated or damaged")


def test_missing_file(folder):
    (folder / "model.safetensors").unlink()
    assert refused(folder, "model.safetensors' is missing")


def test_any_flipped_byte_is_found(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert refused(folder, "does not match its digest")
    with pytest.raises(BadCheckpoint, match="digest"):
        verify(folder)


@pytest.mark.parametrize("digests", [False, True])
def test_missing_and_unknown_tensors(folder, digests):
    rewrite_weights(folder, lambda t: t.pop("first.weight_scale"), digests)
    assert refused(folder, "first.weight_scale")


def test_extra_tensor(folder):
    rewrite_weights(folder, lambda t: t.update({"first.weight": torch.zeros(16, 16)}), digests=True)
    assert refused(folder, "'first.weight' is unknown")


CHANGES = {
    "shape": ("first.weight_codes", lambda v: v[:, :-1].clone(), "first.weight_codes"),
    "dtype": ("first.weight_scale", lambda v: v.half(), "first.weight_scale"),
    "integer dtype": ("steps", lambda v: v.int(), "steps"),
    "NaN scale": ("first.weight_scale", lambda v: v.fill_(float("nan")), "first.weight.scale"),
    "negative scale": ("first.weight_scale", lambda v: v.neg(), "first.weight.scale"),
    "act scale": ("second.act_scale", lambda v: v.fill_(float("inf")), "second.act_scale"),
    "pre-scale": ("first.pre_scale", lambda v: v.fill_(float("nan")), "first.pre_scale"),
    "table of biases": ("first.time_bias", lambda v: v.fill_(float("nan")), "first.time_bias"),
    "signs": ("first.rotation_signs", lambda v: v * 2, "first.rotation_signs"),
    "low rank": ("first.lowrank_a_dense", lambda v: v.fill_(float("inf")), "first.lowrank_a_dense"),
}


@pytest.mark.parametrize(("name", "change", "names"), CHANGES.values(), ids=CHANGES)
def test_values_are_checked_even_when_digests_were_renewed(folder, name, change, names):
    rewrite_weights(folder, lambda t: t.update({name: change(t[name])}), digests=True)
    assert refused(folder, names)


def test_files_without_digests(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt"})
    assert refused(folder, "has no digests")


def test_weights_of_another_plan(folder):
    """The same tensors under other activations would load, and compute something else."""
    other = dataclasses.replace(tiny.PLAN, time_edges=(0.25, 0.8))
    rewrite_config(folder, config_of(Header(other, None, "0.1.0")))
    assert refused(folder, "another plan")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff", '{"quantization_config": ' + "[" * 100000], ids=range(6))
def test_broken_config(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin1"))
    assert refused(folder, "config.json")


def test_no_folder(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"nothing.*config\.json"):
        load_into(tiny.dense(), tmp_path / "nothing", tiny.read)


def sharded(model, tmp_path) -> tuple[Path, dict]:
    save(model, tmp_path / "shards", header_of(model), max_shard_size=900)
    return tmp_path / "shards", json.loads((tmp_path / "shards" / INDEX).read_text())


def test_shard_missing_or_doubled_or_elsewhere(model, tmp_path):
    folder, index = sharded(model, tmp_path)
    assert verify(folder) == [folder]
    names = sorted(set(index["weight_map"].values()))
    shutil.copy(folder / names[0], folder / "copy.safetensors")
    for table, message in [
        ({**index["weight_map"], "x": "copy.safetensors"}, "again in"),
        ({**index["weight_map"], "x": "../a.safetensors"}, "not a safetensors file in its folder"),
        ({**index["weight_map"], "x": "gone.safetensors"}, "gone.safetensors' is missing"),
        ({**index["weight_map"], "x": 3}, "weight_map"),
    ]:
        (folder / INDEX).write_text(json.dumps({**index, "weight_map": table}))
        assert refused(folder, message)
