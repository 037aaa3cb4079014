"""Embedders that read the same parameters answer once in a call of their model, and never from another call."""

import copy
import pickle
from collections import Counter

import pytest
import tiny
import torch
from torch import nn

from dither.nn import fuse, lend
from dither.nn.install import embed_once
from dither.nn.once import Embeddings, Once

PARTS = ("timestep_embedder.linear_1", "timestep_embedder.linear_2", "class_embedder.embedding_table")
CALLS = {"timestep": torch.tensor([5, 300, 900]), "class_labels": torch.tensor([0, 3, 2])}


def model(shared=True):
    """A DiT of two blocks whose embedders are equal, and read the same parameters where they are shared."""
    made = tiny.dit().eval().requires_grad_(False)
    first, second = (block.norm1.emb for block in made.transformer_blocks)
    second.load_state_dict(first.state_dict())
    for part in PARTS if shared else ():
        lend(made, f"transformer_blocks.1.norm1.emb.{part}", f"transformer_blocks.0.norm1.emb.{part}")
    return made


def answer(made, **changed):
    torch.manual_seed(1)
    x = torch.randn(3, made.config.in_channels, made.config.sample_size, made.config.sample_size)
    return made(x, **{**CALLS, **changed}).sample


@pytest.fixture
def embedded(monkeypatch):
    """How often linears of 256 inputs, the first ones of embedders, have run."""
    count = Counter()
    real = nn.functional.linear

    def linear(x, weight, bias=None):
        count["all"] += x.shape[-1] == 256
        return real(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", linear)
    return count


def test_a_call_embeds_once_and_gives_the_same(embedded):
    plain, once = model(), model()
    embed_once(once)
    with torch.no_grad():
        want = answer(plain)
        assert embedded["all"] == 3  # two blocks, and what follows them
        embedded.clear()
        assert torch.equal(answer(once), want)
    assert embedded["all"] == 1


def test_embedders_of_their_own_are_asked_each(embedded):
    once = model(shared=False)
    embed_once(once)
    with torch.no_grad():
        answer(once)
    assert embedded["all"] == 3


def test_nothing_is_known_from_an_earlier_call():
    plain, once = model(), model()
    embed_once(once)
    time = CALLS["timestep"].clone()
    with torch.inference_mode():  # no tensor counts its changes
        answer(once, timestep=time)
        time += 40
        assert torch.equal(answer(once, timestep=time), answer(plain, timestep=time))
    assert once.transformer_blocks[0].norm1.emb.once._last is None


def test_outside_of_a_call_nothing_is_kept(embedded):
    once = model()
    embed_once(once)
    embedder = once.transformer_blocks[0].norm1.emb
    with torch.no_grad():
        for _ in range(2):
            embedder(CALLS["timestep"], CALLS["class_labels"], hidden_dtype=torch.float32)
    assert embedded["all"] == 2


@pytest.mark.parametrize("place", PARTS)
def test_who_looks_on_misses_nothing(place, embedded):
    once, seen = model(), []
    embed_once(once)
    once.transformer_blocks[0].norm1.emb.get_submodule(place).register_forward_hook(lambda *_: seen.append(place))
    with torch.no_grad():
        answer(once)
    assert len(seen) == embedded["all"] == 3


def test_a_part_put_there_later_is_heard():
    plain, once = model(), model()
    embed_once(once)
    for made in (plain, once):
        torch.manual_seed(2)
        other = nn.Linear(256, made.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.owner.out_features)
        made.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1 = other
    with torch.no_grad():
        assert torch.equal(answer(once), answer(plain))


def test_sinusoids_of_other_settings_are_not_the_same():
    plain, once = model(), model()
    embed_once(once)
    for made in (plain, once):
        made.transformer_blocks[1].norm1.emb.time_proj.scale = 2
    with torch.no_grad():
        assert torch.equal(answer(once), answer(plain))


def test_gradients_reach_every_use(embedded):
    once = model()
    embed_once(once)
    once.requires_grad_(True)
    answer(once).sum().backward()
    assert embedded["all"] == 3
    assert once.transformer_blocks[0].norm1.emb.timestep_embedder.linear_1.weight.grad.any()


def test_copies_have_an_answer_of_their_own(embedded):
    once = model()
    embed_once(once)
    for other in (copy.deepcopy(once), pickle.loads(pickle.dumps(once))):
        mine, theirs = (m.transformer_blocks[0].norm1.emb.once for m in (once, other))
        assert theirs is not mine
        assert theirs is other.transformer_blocks[1].norm1.emb.once
        embedded.clear()
        with torch.no_grad():
            assert torch.equal(answer(other), answer(once))
        assert embedded["all"] == 2  # one each


def test_names_stay_as_they_were():
    plain, once = model(), model()
    embed_once(once)
    assert list(once.state_dict()) == list(plain.state_dict())
    assert once.transformer_blocks[0].norm1.emb.training is plain.training


def test_in_a_graph_it_is_whole():
    once = model()
    embed_once(once)
    torch._dynamo.reset()
    compiled = torch.compile(once, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(answer(compiled), answer(once))


def test_a_model_that_is_fused_embeds_once():
    once = model()
    fuse(once)
    assert {type(block.norm1.emb) for block in once.transformer_blocks} == {Embeddings}
    assert isinstance(once.transformer_blocks[0].norm1.emb.once, Once)
