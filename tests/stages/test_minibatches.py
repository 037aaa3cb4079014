"""Samples of calls, taken apart and put together."""

import pytest
import torch

from dither.errors import BadModel
from dither.models import Call
from dither.stages.minibatches import Samples, leaves, some_of


def call(batch: int, first: int, tokens: int = 3, table: float = 0.0, fold: int = 1) -> Call:
    """Every number says its sample; ``table`` is shared, and rows of the stream are ``fold`` a sample."""
    ids = torch.arange(first, first + batch, dtype=torch.float32)
    stream = ids.repeat_interleave(fold)[:, None, None].expand(-1, tokens, 2).clone()
    return Call((stream, None), {"t": ids.clone(), "rope": (torch.full((7, 2), table), 4), "size": {"h": 3}})


def samples(*calls: Call) -> Samples:
    targets = [c.args[0] * 10 for c in calls]
    rows = [c.kwargs["t"].long() + 100 for c in calls]
    return Samples(calls, targets, rows, [c.kwargs["t"] + 0.5 for c in calls])


def test_a_batch_holds_whole_samples_of_any_calls():
    made = samples(call(4, 0), call(6, 4))
    batch = made.of([(1, 5), (0, 2), (1, 0)])
    assert batch.call.kwargs["t"].tolist() == [9, 2, 4]
    assert batch.call.args[0][:, 0, 0].tolist() == [9, 2, 4]
    assert batch.call.args[1] is None
    assert batch.call.kwargs["size"] == {"h": 3}
    assert batch.call.kwargs["rope"][0].shape == (7, 2)
    assert batch.target[:, 0, 0].tolist() == [90, 20, 40]
    assert batch.rows.tolist() == [109, 102, 104]
    assert batch.weights.tolist() == [9.5, 2.5, 4.5]


def test_frames_folded_into_the_batch_stay_with_their_sample():
    made = samples(call(3, 0, fold=2), call(3, 3, fold=2))
    batch = made.of([(1, 1), (0, 2)])
    assert batch.call.args[0][:, 0, 0].tolist() == [4, 4, 2, 2]
    assert batch.target[:, 0, 0].tolist() == [40, 40, 20, 20]
    assert batch.call.kwargs["t"].tolist() == [4, 2]


def test_every_sample_is_drawn_and_none_twice():
    made, make = samples(call(4, 0), call(6, 4)), torch.Generator().manual_seed(0)
    seen = [made.draw(7, make).call.kwargs["t"].tolist() for _ in range(20)]
    assert all(len(set(drawn)) == 7 for drawn in seen)
    assert {i for drawn in seen for i in drawn} == set(range(10))
    assert sorted(made.draw(99, make).call.kwargs["t"].tolist()) == list(range(10))
    again = torch.Generator().manual_seed(0)
    assert made.draw(7, again).call.kwargs["t"].tolist() == seen[0]


@pytest.mark.parametrize("other", [call(4, 4, tokens=5), call(4, 4, table=1.0)], ids=["shape", "what is shared"])
def test_samples_that_do_not_fit_together_are_never_put_together(other):
    made, make = samples(call(4, 0), other, call(4, 8)), torch.Generator().manual_seed(0)
    drawn = [set(made.draw(99, make).call.kwargs["t"].tolist()) for _ in range(30)]
    assert set(map(frozenset, drawn)) == {frozenset({4, 5, 6, 7}), frozenset({0, 1, 2, 3, 8, 9, 10, 11})}


def test_calls_come_whole_too():
    calls = call(4, 0), call(6, 4)
    for got, want in zip(samples(*calls).whole(), calls, strict=True):
        assert got.call is want
        assert len(got.rows) == len(got.weights) == len(want.kwargs["t"])


def test_samples_that_count_alike():
    made = Samples.alike([call(4, 0)], [torch.zeros(4)], [torch.zeros(4).long()])
    assert made.weights[0].tolist() == [1, 1, 1, 1]


def test_some_of_a_call():
    got = some_of(call(6, 0, fold=2), 6, [4, 1])
    assert got.kwargs["t"].tolist() == [4, 1]
    assert got.args[0][:, 0, 0].tolist() == [4, 4, 1, 1]


@pytest.mark.parametrize("first", [torch.zeros(5, 2), torch.zeros(())], ids=["no multiple", "a number"])
def test_a_call_whose_rows_belong_to_no_sample_is_refused(first):
    with pytest.raises(BadModel, match=r"does not have rows for each of its 4 samples"):
        Samples.alike([Call((first,), {})], [None], [torch.zeros(4).long()])


def test_leaves_of_nested_outputs():
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert [t is u for t, u in zip(leaves((a, [b, None], {"x": c, "y": 3})), (a, b, c), strict=True)] == [True] * 3
    assert leaves(None) == []
