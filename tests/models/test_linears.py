import torch
from torch import nn

from dither.models.linears import TIMED, linears_of
from dither.models.rest import rest_of
from dither.nn import Clock, QLinear, TimedLinear, ViewedLinear
from dither.spec import Act, Int, LinearSpec


def test_a_timed_linear_is_one_linear_under_its_old_name():
    assert {TimedLinear.__name__, ViewedLinear.__name__} == set(TIMED)
    variants = [QLinear(LinearSpec(Int(bits), Act(Int(8))), 8, 4, None) for bits in (8, 4)]
    timed = TimedLinear(variants, (0, 1), nn.Parameter(torch.zeros(4)), Clock())
    model = nn.Sequential(nn.Linear(8, 8), timed, nn.Linear(4, 4))
    assert list(linears_of(model)) == ["0", "1", "2"]
    assert linears_of(model)["1"] is variants[0]
    assert rest_of(model) == []


def test_a_users_own_variants_are_linears_of_their_own():
    model = nn.ModuleDict({"variants": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    assert list(linears_of(model)) == ["variants.0", "variants.1"]
