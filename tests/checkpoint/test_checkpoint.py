"""Save and load any torch module, bit for bit."""

import dataclasses

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from dither.checkpoint import (
    check_installed,
    header_of,
    load_into,
    save,
    verify,
)
from dither.errors import BadCheckpoint, DitherError
from dither.spec import Act, Int, LinearSpec, Plan, Trellis


@pytest.mark.parametrize("shard", ["10GB", 900])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reload_is_bit_exact(model, tmp_path, dtype, shard):
    model.to(dtype)
    save(model, tmp_path / "saved", header_of(model), max_shard_size=shard)
    again = tiny.dense(seed=5)
    load_into(again, tmp_path / "saved", tiny.read)
    assert tiny.same_state(model, again)
    assert again.last.weight.dtype == dtype
    assert again.first.get_buffer("weight_scale").dtype == torch.float32
    assert torch.equal(tiny.run(model), tiny.run(again))
    assert header_of(again) == header_of(model)
    assert (len(list((tmp_path / "saved").glob("*.safetensors"))) > 1) == (shard == 900)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_in_bfloat16_stay_in_it(tmp_path, dtype):
    model = tiny.dense()
    spec = LinearSpec(Trellis(2, 8, 4, 4), Act(Int(8)))
    tiny.quantize(model, Plan({"first": spec}), tiny.read)
    save(model.to(dtype), tmp_path / "saved", header_of(model))
    again = tiny.dense(seed=5)
    load_into(again, tmp_path / "saved", tiny.read)
    assert tiny.same_state(model, again)
    assert again.first.get_buffer("weight_scale").dtype == torch.bfloat16
    assert torch.equal(tiny.run(model), tiny.run(again))


def test_loading_into_meta_builds_nothing_dense(folder, model):
    with torch.device("meta"):
        again = tiny.Denoiser()
    load_into(again, folder, tiny.read)
    assert tiny.same_state(model, again)
    assert all(v.device.type == "cpu" for v in again.state_dict().values())


def test_buffers_that_no_checkpoint_holds(folder):
    with torch.device("meta"):
        again = tiny.Denoiser()
        again.register_buffer("positions", torch.zeros(3), persistent=False)
    with pytest.raises(DitherError, match="'positions' is in no checkpoint"):
        load_into(again, folder, tiny.read)


def test_frozen_parameters_stay_frozen(folder):
    again = tiny.dense()
    again.requires_grad_(False)
    load_into(again, folder, tiny.read)
    assert not any(p.requires_grad for p in again.parameters())


def test_time_groups_and_branches_work_after_loading(folder):
    again = tiny.dense()
    load_into(again, folder, tiny.read)
    torch.manual_seed(0)
    x = torch.randn(1, 4, 16).expand(4, 4, 16)
    levels, conds = torch.tensor([0.1, 0.1, 0.5, 0.9]), torch.tensor([0, 1, 0, 0])
    with torch.no_grad():
        y = again(x, levels, cond=conds)
        alone = torch.cat([again(x[i : i + 1], levels[i : i + 1], cond=conds[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(y, alone)
    assert len({tuple(row.flatten().tolist()) for row in y}) == 4


def test_saving_again_gives_the_same_tensors(folder, tmp_path):
    again = tiny.dense()
    load_into(again, folder, tiny.read)
    save(again, tmp_path / "again", header_of(again))
    one, two = (load_file(p / "model.safetensors") for p in (folder, tmp_path / "again"))
    assert set(one) == set(two)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert (folder / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_packed_codes_are_what_lies_on_the_disk(folder):
    stored = load_file(folder / "model.safetensors")
    assert stored["first.weight_codes"].numel() == 16 * 16 * 3 // 8
    assert "first.weight" not in stored


def test_time_groups_need_a_reader(folder):
    with pytest.raises(DitherError, match="read="):
        load_into(tiny.dense(), folder)


def test_model_must_be_quantized_as_the_plan_says(model, tmp_path):
    with pytest.raises(DitherError, match="'first' is a Linear"):
        save(tiny.dense(), tmp_path / "out", header_of(model))
    less = dataclasses.replace(tiny.PLAN, layers={k: v for k, v in tiny.PLAN.layers.items() if k != "first"})
    with pytest.raises(DitherError, match="'first' is quantized, but"):
        check_installed(model, less)
    with pytest.raises(DitherError, match="'fourth' is missing"):
        check_installed(model, dataclasses.replace(tiny.PLAN, layers={**tiny.PLAN.layers, "fourth": tiny.W4}))


def test_state_that_is_no_tensor(model, tmp_path):
    class Extra(nn.Module):
        def get_extra_state(self):
            return {"a": 1}

    model.extra = Extra()
    with pytest.raises(DitherError, match=r"extra\._extra_state"):
        save(model, tmp_path / "out", header_of(model))


def test_verify_finds_checkpoints_in_a_pipeline_folder(folder, tmp_path):
    (tmp_path / "pipe" / "vae").mkdir(parents=True)
    (tmp_path / "pipe" / "vae" / "config.json").write_text("{}")
    folder.rename(tmp_path / "pipe" / "transformer")
    assert verify(tmp_path / "pipe") == [tmp_path / "pipe" / "transformer"]
    with pytest.raises(BadCheckpoint, match="holds no checkpoint"):
        verify(tmp_path / "pipe" / "vae")
