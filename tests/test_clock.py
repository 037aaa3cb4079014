"""The clock: rows of tables, and what it remembers."""

import copy
import gc
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dither.clock import Clock, Last, start_clock
from dither.errors import BadCheckpoint


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(1 / 64, 63 / 64, width=32), max_size=5, unique=True).map(sorted),
    st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 1)), min_size=1, max_size=6),
    st.integers(1, 2),
)
def test_rows_count_the_edges_below(edges, samples, branches):
    clock = Clock(tuple(edges), branches)
    level, branch = torch.tensor([s[0] for s in samples]), torch.tensor([s[1] for s in samples])
    want = [sum(e <= v for e in edges) * branches + (b if branches > 1 else 0) for v, b in samples]
    assert clock.rows_at(level, branch).tolist() == want


def test_pick_broadcasts_rows_over_tokens_and_folded_frames():
    clock = Clock((0.5,))
    clock.set(torch.tensor([0.9, 0.1]), torch.tensor([0, 0]))
    table = torch.tensor([[1.0], [2.0]])
    assert clock.pick(table, torch.zeros(2, 7, 3)).shape == (2, 1, 1)
    assert clock.pick(table, torch.zeros(2, 3)).flatten().tolist() == [2, 1]
    assert clock.pick(table, torch.zeros(6, 7, 3)).flatten().tolist() == [2, 2, 2, 1, 1, 1]
    assert clock.pick(table[:1], torch.zeros(5, 3)).tolist() == [1.0]
    with pytest.raises(BadCheckpoint, match="batch 3"):
        clock.pick(table, torch.zeros(3, 3))


def test_clock_is_read_at_each_call_only_when_the_plan_has_rows():
    calls = []

    def read(args, kwargs):
        calls.append((args, kwargs))
        return torch.tensor([0.9]), torch.tensor([0])

    model = nn.Sequential(nn.Linear(4, 4))
    start_clock(model, Clock(), read)
    model(torch.zeros(1, 4))
    assert not calls
    clock = Clock((0.5,))
    start_clock(model, clock, read)
    model(torch.zeros(1, 4))
    assert len(calls) == 1
    assert clock.row.tolist() == [1]


# --- the last transform


def test_last_knows_the_very_tensor_under_the_very_key():
    last, x, result = Last(), torch.ones(3), torch.zeros(3)
    assert last.get(x, b"a") is None
    last.put(x, b"a", result)
    assert last.get(x, b"a") is result
    assert last.get(x, b"b") is None
    assert last.get(x.clone(), b"a") is None
    assert last.get(x.view(3), b"a") is None
    last.put(x, b"b", x)
    assert last.get(x, b"a") is None


def test_last_notices_that_the_tensor_was_changed():
    last, x = Last(), torch.ones(3)
    last.put(x, b"a", x * 2)
    x += 1
    assert last.get(x, b"a") is None


def test_last_keeps_neither_input_nor_result_alive():
    last, x = Last(), torch.ones(3)
    result = torch.zeros(3)
    last.put(x, b"a", result)
    last.put(torch.ones(4), b"b", result)  # gone at once
    assert last._result is None
    last.put(x, b"a", result)
    del x
    gc.collect()
    assert last._result is None


def test_copies_of_a_clock_remember_nothing():
    clock, x = Clock((0.5,)), torch.ones(3)
    clock.last.put(x, b"a", x)
    for twin in (copy.deepcopy(clock), pickle.loads(pickle.dumps(clock))):
        assert twin.last.get(x, b"a") is None
        assert torch.equal(twin.edges, clock.edges)
    assert clock.last.get(x, b"a") is x
