"""Soft assignments: weight and gradients against plain autograd, how they begin, settle and harden, and what is kept."""

import pytest
import torch
from torch import Tensor

from dither.numerics import decode, encode, nearest_words
from dither.spec import Codebook
from dither.stages.soft_codes import SoftCodes

FMT = Codebook(2, 8)
SCALED = Codebook(4, 8, row_scale=True)


def weight(seed: int = 0) -> Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))


def soft(n: int, inverse: bool = True, fmt: Codebook = FMT) -> SoftCodes:
    w = weight()
    return SoftCodes(w, fmt, encode(w, fmt), n, inverse)


@pytest.mark.parametrize("fmt", [FMT, SCALED], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_value_and_gradients_are_those_of_the_weighted_sum(fmt, n):
    made = soft(n, fmt=fmt)
    cost = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    (made.value() * cost).sum().backward()
    words = made.words.detach().clone().requires_grad_()
    if n == 1:
        want = words[made.codes.long()]
    else:
        logits = made.logits.detach().clone().requires_grad_()
        want = (torch.softmax(logits, 1)[..., None] * words[made.candidates.long()]).sum(1)
    want = want.view(6, 16) * (1 if made.scale is None else made.scale)
    torch.testing.assert_close(made.value().detach(), want.detach())
    (want * cost).sum().backward()
    torch.testing.assert_close(made.words.grad, words.grad)
    if n > 1:
        torch.testing.assert_close(made.logits.grad, logits.grad)


def test_candidates_are_the_nearest_words():
    made, points = soft(3), weight().reshape(-1, 2)
    distance = (points[:, None] - made.words.detach()).norm(dim=2)
    assert torch.equal(made.candidates.long(), distance.argsort(1)[:, :3])
    index, squared = nearest_words(points, made.words.detach(), 3)
    torch.testing.assert_close(squared, distance.square().sort(1).values[:, :3], rtol=1e-3, atol=1e-4)
    assert torch.equal(index, made.candidates.long())


def test_ratios_begin_alike_or_by_distance():
    assert not soft(3, inverse=False).logits.any()
    made = soft(2)
    distance = (weight().reshape(-1, 2)[:, None] - made.words.detach()[made.candidates.long()]).norm(dim=2)
    far = distance[:, 0] > 0.05
    ratio = torch.softmax(made.logits.detach(), 1)
    torch.testing.assert_close(
        (ratio[:, 0] / ratio[:, 1])[far], (distance[:, 1] / distance[:, 0])[far], rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("fmt", [FMT, SCALED], ids=str)
def test_what_is_hardened_is_what_is_exported(fmt):
    made = soft(3, fmt=fmt)
    with torch.no_grad():
        made.logits.copy_(torch.randn(made.logits.shape, generator=torch.Generator().manual_seed(2)))
        made.words.add_(0.1)
    best = made.candidates.gather(1, made.logits.argmax(1, keepdim=True))[:, 0].long()
    places = made.harden()
    assert int(places.sum()) == len(best)
    assert made.hard
    exported = decode(made.stored(), fmt, (6, 16))
    assert torch.equal(exported, made.value().detach())
    assert torch.equal(exported, made.words.detach()[best].view(6, 16) * (1 if made.scale is None else made.scale))
    assert made.harden() is None
    assert made.penalty(False) is None


def test_soft_assignments_are_not_stored():
    with pytest.raises(RuntimeError, match="harden"):
        soft(2).stored()


def test_assignments_settle_one_by_one_and_stay():
    made = soft(2, inverse=False)
    with torch.no_grad():
        made.logits[:5, 1] = 10
    assert made.settle(0.99) == pytest.approx(5 / len(made.logits))
    made.value().square().sum().backward()
    assert not made.logits.grad[:5].any()
    assert made.logits.grad[5:].any()
    assert torch.softmax(made.logits, 1)[:5, 1].min() == 1


@pytest.mark.parametrize(("absolute", "want"), [(False, 0.5), (True, 2.0)])
def test_the_penalty_is_largest_where_nothing_is_decided(absolute, want):
    made = soft(2, inverse=False)
    assert float(made.penalty(absolute).detach()) == pytest.approx(want)
    with torch.no_grad():
        made.logits[1:, 0] = 50
    assert float(made.penalty(absolute).detach()) == pytest.approx(want / len(made.logits))
    made.settle(0.99)
    assert float(made.penalty(absolute).detach()) == pytest.approx(want)  # of those that are left


@pytest.mark.parametrize("hard", [False, True])
def test_a_state_brings_it_back(hard):
    made, other = soft(3), soft(3)
    with torch.no_grad():
        made.logits[:, 2] += 3
        made.words.mul_(2)
    made.settle(0.9)
    if hard:
        made.harden()
    other.load({key: tensor.detach().clone() for key, tensor in made.state().items()})
    assert other.hard == hard
    assert torch.equal(other.value(), made.value())
