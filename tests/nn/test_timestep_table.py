"""Timestep tables: lookups, what they refuse, and how they live among a model's modules."""

import copy
import pickle

import pytest
import tiny
import torch

from dither.errors import BadCheckpoint, BadModel, BadValue
from dither.nn import Borrowed, TimestepTable, embedding_width, install, put_table, timestep_tables
from dither.spec import Plan, TableSpec

FIRST, SECOND = (f"transformer_blocks.{i}.norm1.emb" for i in range(2))
SHARED = {FIRST: TableSpec(20), SECOND: TableSpec(20, FIRST)}


def table(dtype: torch.dtype = torch.float32) -> TimestepTable:
    return TimestepTable(1000, 3).load(torch.arange(3000.0).view(1000, 3).to(dtype))


def table_at(model: torch.nn.Module, name: str) -> TimestepTable | Borrowed:
    return model.get_submodule(name).time_proj


def shared() -> torch.nn.Module:
    """A model whose second block reads the table of the first."""
    model = tiny.dit()
    install(model, Plan(timesteps=SHARED), None)
    table_at(model, FIRST).load(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64])
def test_every_whole_timestep_is_a_row_whatever_its_dtype(dtype):
    made = table()
    assert torch.equal(made(torch.arange(1000).to(dtype)), made.table)
    assert torch.equal(made(torch.tensor([7], dtype=dtype)), torch.tensor([[21.0, 22.0, 23.0]]))
    assert not made(torch.tensor([7])).requires_grad


def test_the_dtype_is_the_models_own():
    assert table().half()(torch.tensor([999])).dtype == torch.float16


@pytest.mark.parametrize(
    ("timestep", "says"),
    [
        (torch.tensor([1.0, 12.5]), r"timestep 12\.5: .* whole timesteps 0 to 999; use a scheduler .*'precompute'"),
        (torch.tensor([-1, 5]), "timestep -1: "),
        (torch.tensor([1000]), "timestep 1000: "),
        (torch.tensor([float("nan")]), "timestep nan: "),
        (torch.tensor([float("inf")]), "timestep inf: "),
    ],
)
def test_a_timestep_between_rows_or_outside_is_refused(timestep, says):
    with pytest.raises(BadValue, match=says):
        table()(timestep)


def test_all_tables_of_a_model_check_the_timesteps_of_a_call_once(monkeypatch):
    import dither.nn.timestep_table as module

    checked = []
    real = module._rows
    monkeypatch.setattr(module, "_rows", lambda timestep, count: checked.append(count) or real(timestep, count))
    model = tiny.dit(num_layers=3)
    third = "transformer_blocks.2.norm1.emb"
    install(model, Plan(timesteps={FIRST: TableSpec(20), SECOND: TableSpec(20, FIRST), third: TableSpec(20)}), None)
    tables = [table_at(model, name) for name in (FIRST, SECOND, third)]
    for made in (tables[0], tables[2]):
        made.load(torch.randn(20, 16))
    steps = torch.tensor([3, 19])
    for made in tables * 2:
        made(steps)
    assert checked == [20]
    assert torch.equal(tables[2](steps), tables[2].table[steps])
    assert torch.equal(table()(steps), table().table[steps])  # of another length
    steps += 1  # the same tensor, and no longer a row of these
    with pytest.raises(BadValue, match=r"timestep 20: "):
        tables[0](steps)
    with torch.inference_mode():
        unknown = torch.tensor([3, 19])
        tables[0](unknown)
        unknown += 1
        with pytest.raises(BadValue, match=r"timestep 20: "):
            tables[0](unknown)


def test_a_compiled_graph_looks_up_and_refuses_alike():
    torch._dynamo.reset()
    made = table()
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.tensor([3, 999])), made(torch.tensor([3, 999])))
    assert torch.equal(compiled(torch.tensor([3.0, 998.0])), made(torch.tensor([3, 998])))
    with pytest.raises(BadValue, match=r"timestep 0\.5"):
        compiled(torch.tensor([3.0, 0.5]))
    torch._dynamo.reset()


def test_a_table_is_stored_once_for_all_that_read_it():
    model = shared()
    names = [name for name in model.state_dict() if "emb." in name and "class_embedder" not in name]
    assert names == [f"{FIRST}.time_proj.table"]
    borrowed = table_at(model, SECOND)
    assert isinstance(borrowed, Borrowed)
    steps = torch.tensor([3, 19])
    assert torch.equal(borrowed(steps), table_at(model, FIRST)(steps))
    assert timestep_tables(model) == SHARED
    assert f"same_as={FIRST}.time_proj" in repr(borrowed)
    assert "rows=20, width=16" in repr(table_at(model, FIRST))


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_reads_its_own_table(twin_of):
    model = shared()
    twin = twin_of(model)
    assert table_at(twin, SECOND).owner is table_at(twin, FIRST)
    assert table_at(twin, SECOND).owner is not table_at(model, FIRST)
    twin.half()
    assert table_at(twin, SECOND)(torch.tensor([1])).dtype == torch.float16
    assert table_at(model, SECOND)(torch.tensor([1])).dtype == torch.float32


def test_a_block_calls_its_table_with_the_timestep_and_adds_the_label():
    model = shared()
    emb = model.get_submodule(SECOND).eval()
    steps, labels = torch.tensor([0, 19]), torch.tensor([2, 10])
    got = emb(steps, labels, hidden_dtype=torch.bfloat16)
    want = table_at(model, FIRST).table[steps].bfloat16() + emb.class_embedder.embedding_table.weight[labels]
    torch.testing.assert_close(got, want)


def test_timesteps_that_half_precision_does_not_hold_are_looked_up_before_they_are_cast():
    """999 is 1000 in bfloat16."""
    model = tiny.dit().bfloat16()
    put_table(model, FIRST, TableSpec(1000), dtype=torch.bfloat16)
    rows = torch.randn(1000, 16, dtype=torch.bfloat16)
    table_at(model, FIRST).load(rows)
    emb = model.get_submodule(FIRST)
    label = emb.class_embedder.embedding_table.weight[0]
    got = emb(torch.tensor([999]), torch.tensor([0]), hidden_dtype=torch.bfloat16)
    assert torch.equal(got[0], rows[999] + label)


def test_the_width_is_known_before_and_after():
    model = tiny.dit()
    emb = model.get_submodule(FIRST)
    assert embedding_width(emb) == 16
    put_table(model, FIRST, TableSpec(5))
    put_table(model, SECOND, TableSpec(5, FIRST))
    assert embedding_width(emb) == embedding_width(model.get_submodule(SECOND)) == 16
    assert timestep_tables(model) == {FIRST: TableSpec(5), SECOND: TableSpec(5, FIRST)}
    assert timestep_tables(tiny.dit()) == {}
    with pytest.raises(BadModel, match="a Linear embeds no timestep"):
        embedding_width(model.proj_out_1)


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(BadCheckpoint, match="timestep embedder 'emb', which the model does not have"):
        install(tiny.dit(), Plan(timesteps={"emb": TableSpec(5)}), None)


def test_tables_are_installed_before_who_reads_them():
    model = tiny.dit()
    install(model, Plan(timesteps={FIRST: TableSpec(5, SECOND), SECOND: TableSpec(5)}), None)
    assert table_at(model, FIRST).owner is table_at(model, SECOND)
