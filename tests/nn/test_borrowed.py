"""Modules that read the parameters of others: what may be shared, and how they live among a model's modules."""

import copy
import pickle

import pytest
import tiny
import torch
from torch import nn

from dither.errors import BadCheckpoint, BadFormat
from dither.nn import Borrowed, alike, equal, install, lend, shared_modules
from dither.spec import Plan

LABELS = [f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table" for i in range(2)]


def lent() -> nn.Module:
    model = tiny.dit()
    lend(model, LABELS[1], LABELS[0])
    return model


def test_it_answers_as_the_owner_and_has_no_parameter():
    model = lent()
    borrowed, owner = (model.get_submodule(name) for name in reversed(LABELS))
    assert torch.equal(borrowed(torch.tensor([3, 1])), owner.weight[[3, 1]])
    assert not list(borrowed.parameters())
    assert not any(key.startswith(LABELS[1]) for key in model.state_dict())
    assert shared_modules(model) == {LABELS[1]: LABELS[0]}
    assert f"same_as={LABELS[0]}" in repr(borrowed)


def test_who_asks_for_weight_and_bias_gets_the_owners():
    owner = nn.Linear(3, 2)
    borrowed = Borrowed(owner, "a")
    assert borrowed.weight is owner.weight
    assert borrowed.bias is owner.bias


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_reads_its_own_owner(twin_of):
    model = lent()
    twin = twin_of(model)
    borrowed, owner = (twin.get_submodule(name) for name in reversed(LABELS))
    assert borrowed.owner is owner
    assert borrowed.owner is not model.get_submodule(LABELS[0])
    twin.half()
    assert borrowed(torch.tensor([1])).dtype == torch.float16
    assert model.get_submodule(LABELS[1])(torch.tensor([1])).dtype == torch.float32


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (nn.Linear(3, 2), nn.Linear(3, 2, bias=False)),
        (nn.Linear(3, 2), nn.Linear(2, 3)),
        (nn.Linear(3, 2), nn.Linear(3, 2, dtype=torch.float64)),
        (nn.Linear(3, 2), nn.Linear(3, 2, device="meta")),
        (nn.Linear(3, 2), Scaled(3, 2)),
        (Scaled(3, 2), Scaled(3, 2)),
        (nn.Embedding(3, 2), nn.Embedding(3, 2, padding_idx=0)),
        (nn.LayerNorm(3), nn.LayerNorm(3)),
    ],
    ids=["bias", "widths", "dtype", "device", "derived", "both derived", "padding", "norm"],
)
def test_modules_that_may_differ_in_more_than_parameters_are_not_alike(a, b):
    assert not alike(a, b)
    with pytest.raises(BadFormat, match="'1' cannot share the parameters of '0'"):
        lend(nn.Sequential(a, b), "1", "0")


def test_equal_means_bit_for_bit():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    assert alike(a, b)
    assert not equal(a, b)
    b.load_state_dict(a.state_dict())
    assert equal(a, b)
    with torch.no_grad():
        a.bias[0], b.bias[0] = 0.0, -0.0
    assert not equal(a, b)


@pytest.mark.parametrize(
    ("shared", "says"),
    [
        ({"no.such": LABELS[0]}, "'no.such' shares the parameters of"),
        ({LABELS[1]: "no.such"}, "shares the parameters of 'no.such'"),
        ({LABELS[1]: "proj_out_1"}, "cannot share the parameters of 'proj_out_1'"),
    ],
)
def test_a_plan_of_another_model_is_refused(shared, says):
    with pytest.raises(BadCheckpoint, match=says):
        install(tiny.dit(), Plan(shared=shared), None)
