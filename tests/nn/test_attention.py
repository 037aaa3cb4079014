"""Attention on quantized factors against the formula, through diffusers' own processors."""

import copy
import pickle

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from dither.clock import Clock
from dither.errors import BadFormat, BadModel, BadValue
from dither.nn import QAttention, Widths, attention_layout, detach, widths_of
from dither.nn import attention as module
from dither.numerics import act_quantize, dynamic_table
from dither.spec import Act, AttentionSpec, Int, TwoRegion

SIDE, PROBS = Act(Int(4, False, group=8)), Act(TwoRegion(4), static=True)
SPEC = AttentionSpec(SIDE, Act(Int(5, group=8)), SIDE, PROBS)
TABLES = {"probs.scale": torch.tensor([[0.01]]), "probs.upper": torch.tensor([[0.1]])}


def attention(seed: int = 0, **changes: object) -> Attention:
    torch.manual_seed(seed)
    return Attention(query_dim=16, heads=2, dim_head=8, **changes).eval().requires_grad_(False)


def put(made: nn.Module, spec: AttentionSpec = SPEC, clock: Clock | None = None) -> QAttention:
    own = QAttention(spec, widths_of(made), clock or Clock()).attach(made)
    return own.load(TABLES) if spec.probs else own


def seen(act: Act, x: Tensor) -> Tensor:
    """Heads (B, H, N, d), each token of each by itself."""
    flat = x.transpose(1, 2).flatten(2)
    return act_quantize(flat, act.grid, dynamic_table(flat, act.grid)).unflatten(2, (2, 8)).transpose(1, 2)


def by_hand(made: Attention, x: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (
        getattr(made, f"to_{name}")(source).unflatten(-1, (2, 8)).transpose(1, 2)
        for name, source in (("q", x), ("k", text), ("v", text))
    )
    scores = seen(SIDE, q) @ seen(Act(Int(5, group=8)), k).mT / 8**0.5
    a = (scores if mask is None else scores + mask).softmax(-1)
    a = act_quantize(a, PROBS.grid, {"scale": torch.tensor([0.01]), "upper": torch.tensor([0.1])})
    return made.to_out[0]((a @ seen(SIDE, v)).transpose(1, 2).flatten(2))


X = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(1))
TEXT = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("rows", [1 << 24, 50])
def test_self_and_cross_attention_are_the_formula(rows, monkeypatch):
    """Also where queries go through in chunks."""
    monkeypatch.setattr(module, "_SCORES", rows)
    made = attention()
    plain = made(X)
    put(made)
    torch.testing.assert_close(made(X), by_hand(made, X, X))
    torch.testing.assert_close(made(X, TEXT), by_hand(made, X, TEXT))
    assert float((made(X) - plain).abs().max()) > 1e-3


def test_a_mask_hides_and_adds():
    made = attention()
    put(made)
    mask = torch.zeros(3, 1, 4)
    mask[:, :, 2:] = -10000.0  # as pipelines make them of attention masks of text
    torch.testing.assert_close(made(X, TEXT, attention_mask=mask), by_hand(made, X, TEXT, mask[:, None]))
    own = put(made, AttentionSpec())
    q = torch.randn(2, 2, 5, 8)
    keep = torch.tensor([True, True, False, True, True]).expand(2, 1, 5, 5)
    want = nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=keep, scale=0.3)
    torch.testing.assert_close(own.attend(q, q, q, keep, scale=0.3), want)


def test_nothing_quantized_is_the_attention_itself_and_can_be_looked_at():
    made = attention()
    plain = made(X)
    own = put(made, AttentionSpec())
    shapes = {}
    for name in ("q", "k", "v", "probs"):
        own.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: shapes.update({name: args[0].shape})
        )
    torch.testing.assert_close(made(X, TEXT), attention()(X, TEXT))
    torch.testing.assert_close(made(X), plain)
    assert shapes == {"q": (3, 6, 16), "k": (3, 6, 16), "v": (3, 6, 16), "probs": (3, 2, 6, 6)}


def test_a_second_one_takes_the_place_of_the_first_and_none_is_left_after_detaching():
    made = attention()
    plain = made(X)
    put(made)
    put(made, AttentionSpec())
    torch.testing.assert_close(made(X), plain)
    detach(made)
    assert torch.equal(made(X), plain)
    assert not any("quantized" in name for name in made.state_dict())
    assert not made._forward_hooks
    assert not made._forward_pre_hooks


def test_tables_follow_the_clock():
    clock = Clock((0.5,))
    clock.set(torch.tensor([0.1, 0.9, 0.9]), torch.zeros(3, dtype=torch.int64))
    made = attention()
    own = QAttention(AttentionSpec(q=Act(Int(8, group=8), True, 2)), widths_of(made), clock).attach(made)
    scales = torch.tensor([[0.01, 0.02], [0.3, 0.4]])
    own.load({"q.scale": scales})
    q = made.to_q(X)
    seen = own.q(q)
    for i, row in enumerate((0, 1, 1)):
        assert torch.equal(seen[i], act_quantize(q[i], Int(8, group=8), {"scale": scales[row]}))


def test_copies_are_whole_and_apart():
    """A copy's hooks are its own: what it rounds does not change the first."""
    made = attention()
    put(made)
    want = made(X)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(twin(X), want)
        twin.quantized.probs.get_buffer("upper").fill_(0.5)
        assert not torch.equal(twin(X), want)
        assert torch.equal(made(X), want)


def test_an_attention_may_run_inside_another_and_fail():
    """The intercepted call is that of the innermost one, and a failure leaves nothing behind."""
    made, inner = attention(), attention(1)
    put(made)
    want, nothing = made(X), inner(X)
    with pytest.raises(RuntimeError):
        made(torch.zeros(3, 6, 5))
    assert torch.equal(made(X), want)
    assert torch.equal(inner(X), nothing)  # which is not quantized


def test_gradients_reach_the_input():
    made, x = attention(), X.clone().requires_grad_()
    put(made)
    made(x).square().sum().backward()
    assert float(x.grad.abs().min()) >= 0
    assert float(x.grad.abs().max()) > 0


def test_layout_and_state():
    made = attention()
    put(made)
    want = {f"quantized.{name}": entry for name, entry in attention_layout(SPEC, Widths(16, 16, 16, 2)).items()}
    state = {k: (tuple(v.shape), v.dtype) for k, v in made.state_dict().items() if k.startswith("quantized")}
    assert state == want == {f"quantized.probs.{x}": ((1, 1), torch.float32) for x in ("scale", "upper")}
    with pytest.raises(BadFormat, match="group size 5 does not divide"):
        attention_layout(AttentionSpec(k=Act(Int(8, group=5))), Widths(16, 16, 16, 2))


def test_processors_that_compute_it_themselves_are_named():
    made = attention(processor=AttnProcessor())
    put(made)
    with pytest.raises(BadModel, match=r"calls scaled_dot_product_attention 0 times.*default attention processors"):
        made(X)
    made.set_processor(AttnProcessor2_0())  # a user may change it afterwards
    torch.testing.assert_close(made(X), by_hand(made, X, X))


def test_what_no_denoiser_does_is_refused():
    own = put(attention())
    q = torch.randn(1, 2, 3, 8)
    for given in ({"dropout_p": 0.1}, {"is_causal": True}, {"enable_gqa": True}):
        with pytest.raises(BadValue, match="no dropout, no causal mask and no grouped heads"):
            own.attend(q, q, q, **given)


def test_fused_projections_have_no_widths():
    with pytest.raises(BadModel, match="no linear 'to_q': were its projections fused"):
        widths_of(nn.ModuleDict({"to_qkv": nn.Linear(4, 12)}))
