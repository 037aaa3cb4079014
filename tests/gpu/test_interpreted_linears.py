"""Whole linears in Triton's interpreter: every format that the kernels claim beside the oracle of ``conformance``."""

import pytest
import torch
from conformance.test_every_format import ACTS, WEIGHTS, K, N, assert_close, input_of, layer_of, oracle, spec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import interpreted, silent
from nn.test_feed_forward import SPECS as BOTH
from nn.test_feed_forward import WIDTH, Block
from spied import spied

from dither.errors import DitherError
from dither.gpu import WHOLE, few_rows, int8_weight
from dither.kernels import gpu, gpu_linears, gpu_weights, named
from dither.kernels.fusion import Around, Turn
from dither.kernels.integers import values_named
from dither.kernels.table import Inputs
from dither.nn import fuse
from dither.numerics import decode, encode, trellis_codes, unpack_int
from dither.spec import PER_TENSOR, Act, Gaussian, Int, LinearSpec, LowRank, Nested, Rotation, Trellis

pytestmark = [interpreted, *silent]
SPECS_OF_BOTH = {
    **BOTH,
    "regions": BOTH["by time"],
    "codes": (LinearSpec(Int(4, False), Act(Int(8, False))), LinearSpec(Int(8), Act(Int(8, False), True, 3))),
    "symmetric codes": (LinearSpec(Int(8), Act(Int(8))), LinearSpec(Int(3, False), Act(Int(8), True))),
    "by time": (LinearSpec(Int(8), Act(Int(8, False), True, 3)), LinearSpec(Int(4), Act(Int(8), True, 3))),
}
CPU = torch.device("cpu")
INT8, DECODE = gpu.TRITON_INT8, gpu.TRITON_DECODE


@pytest.fixture(autouse=True)
def as_if_it_were_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "can_run", lambda device: True)


def held(spec, n=N, k=K):
    """A layer that the kernels claim, with the kernel; None if they do not."""
    kernel = next((each for each in (INT8, DECODE) if each.when(spec, (n, k), CPU)), None)
    if kernel is None:
        return None
    layer = layer_of(spec, n, k)
    layer.kernel = kernel
    return layer


@pytest.mark.parametrize("act", ["a8", "a8 asym", "a4 asym group"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_weight(weight, act):
    layer = held(spec_of(WEIGHTS[weight], ACTS[act]))
    if layer is None:
        assert weight.startswith(("codebook", "dense", "float8"))
        return
    x = input_of(2, 5, K)
    assert_close(layer(x), oracle(layer, x))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("weight", [Int(8, False), Int(4, False, 6)], ids=str)
def test_every_activation(weight, act):
    layer = held(spec_of(weight, ACTS[act]))
    if layer is None:
        assert act == "a1" or any(name in act for name in ("log2", "small", "float8"))
        return
    for x in (input_of(2, K), input_of(2, 5, K)):
        assert_close(layer(x), oracle(layer, x))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_few_rows_and_many_of_weights_alone(weight):
    layer = held(spec_of(WEIGHTS[weight], None))
    if layer is None:
        assert weight.startswith(("codebook", "dense", "float8"))
        return
    for rows in (3, 40):
        x = input_of(rows, K)
        assert_close(layer(x), oracle(layer, x))


@pytest.mark.parametrize("weight", [Int(4), Int(4, False), Int(4, False, PER_TENSOR), Int(4, True, 32)], ids=str)
@pytest.mark.parametrize("act", ["a8", "a8 asym", "a8 static"])
def test_packed_nibbles(weight, act):
    layer = held(spec_of(weight, ACTS[act]), 40, 96)
    assert (gpu_weights.nibbles_of(layer.spec, layer.shape) != WHOLE) == (weight.group <= 0)
    x = input_of(2, 9, 96)
    assert_close(layer(x), oracle(layer, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("spec", [spec_of(Int(8), Act(Int(8))), spec_of(Int(3, False), None)], ids=str)
def test_dtypes(spec, dtype):
    layer = held(spec)
    x = input_of(3, K).to(dtype)
    got = layer(x)
    assert got.dtype == dtype
    assert_close(got, oracle(layer, x), 2e-3 if dtype == torch.float16 else 1e-5)


@pytest.mark.parametrize("spec", [spec_of(Int(8), Act(Int(8))), spec_of(Int(3, False), None)], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 1, 5), (17, 33, 31)])
def test_odd_shapes(spec, m, n, k):
    layer = held(spec, n, k)
    assert_close(layer(input_of(m, k)), oracle(layer, input_of(m, k)))
    assert layer(input_of(k)).shape == (n,)
    assert layer(torch.empty(2, 0, k)).shape == (2, 0, n)


@pytest.mark.parametrize("act", [None, Act(Int(8, False))], ids=str)
def test_inputs_of_any_stride(act):
    layer, wide = held(spec_of(Int(8), act)), input_of(4, 2 * K)
    for x in (input_of(K, 5).T, input_of(2, K, 5).mT, wide[:, ::2], wide[::2, K:], input_of(1, K).expand(3, K)):
        assert_close(layer(x), oracle(layer, x))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    bits=st.integers(1, 8), symmetric=st.booleans(), group=st.sampled_from([0, PER_TENSOR, 6, 24]), read=st.integers(1, 8),
    n=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_decoded_integers_are_those_that_are_stored(bits, symmetric, group, read, n, seed):
    whole, shape = Int(bits, symmetric, group), (n, 48)
    fmt = Nested(whole, read) if read < bits else whole
    stored = encode(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), fmt)
    spec = LinearSpec(fmt)
    ready = DECODE.prepare(spec, shape, stored)
    call = Inputs(torch.empty(0, 48), spec, shape, stored, None, None, ready)
    assert torch.equal(gpu._dense(call), decode(stored, fmt, shape))


@pytest.mark.parametrize("fmt", [Trellis(b, s, 8, 4) for b, s in ((1, 7), (2, 12), (3, 16), (4, 9))], ids=str)
def test_decoded_trellises_are_those_that_are_stored(fmt):
    shape = (24, 20)
    stored = encode(torch.randn(shape), fmt)
    told = gpu_weights.stored_as(fmt, shape).numbers()
    table = values_named(fmt)
    assert torch.equal(int8_weight(stored["codes"], None, table, told), trellis_codes(stored, fmt, shape))


def test_codes_that_reach_into_three_bytes():
    """No format stores wider codes than 8 bits in words today; what is packed may have up to 16."""
    from dither.gpu import WORDS, Stored
    from dither.numerics import pack

    table = torch.randint(-128, 128, (1 << 11, 1), dtype=torch.int8)
    index = torch.randint(0, 1 << 11, (5, 48))
    told = Stored(WORDS, 5, 48, 11)
    assert torch.equal(int8_weight(pack(index, 11, False), None, table, told.numbers()), table[index, 0])


def test_what_is_decoded_and_multiplied_must_fit():
    stored = encode(torch.randn(6, 24), Int(3, False))
    told = gpu_weights.stored_as(Int(3, False), (6, 24)).numbers()
    with pytest.raises(DitherError, match=r"decoding a weight of 6 x 24 cannot run: codes is uint8 \(6, 8\)"):
        int8_weight(stored["codes"][:, :8], stored["zero"], None, told)
    with pytest.raises(DitherError, match=r"zero is uint8 \(6, 2\)"):
        int8_weight(stored["codes"], torch.zeros(6, 2, dtype=torch.uint8), None, told)
    with pytest.raises(DitherError, match=r"a linear of 6 x 24 and 33 rows cannot run: x is float32 \(33, 24\)"):
        few_rows(torch.randn(33, 24), stored["codes"], stored["scale"], stored["zero"], None, None, told)
    with pytest.raises(DitherError, match="table is int8"):
        few_rows(
            torch.randn(3, 24),
            stored["codes"],
            stored["scale"],
            stored["zero"],
            torch.zeros(2, dtype=torch.int8),
            None,
            told,
        )


SPECS = [
    spec_of(Int(8), Act(Int(8))),
    spec_of(Int(4, False, 6), Act(Int(8, False))),
    spec_of(Gaussian(4, 256), ACTS["a8 asym static rows"]),
    spec_of(Int(4, False), Act(Int(8)), LinearSpec(pre_scale=1, rotation=Rotation(12))),
    spec_of(Int(8), Act(Int(8)), LinearSpec(rotation=Rotation(24), lowrank=LowRank(2))),
    spec_of(Int(3, False), None),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_graphs_are_whole_and_batches_may_change(spec):
    layer = held(spec)
    layer(input_of(2, 3, K))  # what a kernel prepares is there
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (3, 6):
        x = input_of(2, rows, K)
        torch.testing.assert_close(compiled(x), layer(x))


def test_the_operators_on_weights_are_good_ones():
    fmt, shape = Int(3, False, 8), (6, 24)
    stored, told = encode(torch.randn(shape), fmt), gpu_weights.stored_as(fmt, shape).numbers()
    ops = torch.ops.dither
    torch.library.opcheck(ops.int8_weight.default, (stored["codes"], stored["zero"], None, told))
    given = (torch.randn(3, 24), stored["codes"], stored["scale"], stored["zero"], None, torch.randn(6), told)
    torch.library.opcheck(ops.few_rows.default, given)


def test_prepared_sums_are_of_what_is_multiplied():
    for fmt in (Int(8, False), Int(4, False), Int(3, False, 8), Nested(Int(8, False), 4), Int(1)):
        shape = (6, 64)
        stored = encode(torch.randn(shape), fmt)
        spec = LinearSpec(fmt, Act(Int(8, False)))
        ready = INT8.prepare(spec, shape, stored)
        call = Inputs(torch.empty(0, 64), spec, shape, stored, None, None, ready)
        w = gpu_linears.weight_of(call)
        if w.dtype == torch.uint8:
            w = unpack_int(stored, Int(4, False), 64).int() - 8
        segments = ready["scale"].shape[1]
        assert torch.equal(ready["sums"], w.view(6, segments, -1).sum(-1, dtype=torch.int32).T)


def run(layer, x, turn=None, after=0, **around):
    call = layer.inputs(x, layer.bias, layer.ways[0])
    return gpu_linears.linears([call], turn or Turn(), Around(**around), after)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gate_and_residual_of_a_linear(dtype):
    """To the bit what they are behind it."""
    layer, x = held(spec_of(Int(8), Act(Int(8)))), input_of(2, 5, K).to(dtype)
    gate, residual = torch.randn(2, N), torch.randn(2, 5, N).to(dtype)
    got = run(layer, x, gate=gate, residual=residual)
    assert torch.equal(got, gpu_linears.gated(layer(x), gate, residual))


@pytest.mark.parametrize("tanh", [True, False])
def test_gate_and_gelu_behind_two_regions(tanh):
    layer, x = held(spec_of(Int(8, False), ACTS["a6 two regions static rows"])), input_of(2, 5, K)
    gate, residual, between = torch.randn(2, N), torch.randn(2, 5, N), torch.rand(K) + 0.5
    got = run(layer, x, Turn(between), 1 if tanh else 2, gate=gate, residual=residual)
    y = torch.nn.functional.gelu(layer(x * between), approximate="tanh" if tanh else "none")
    torch.testing.assert_close(got, residual + gate[:, None] * y)


@pytest.mark.parametrize("spec", [spec_of(Int(4, False), ACTS["a8 asym"]), spec_of(Int(4, False), None)], ids=str)
def test_a_kernel_leaves_its_inputs_alone(spec):
    layer = held(spec)
    stored = {name: t.clone() for name, t in layer.stored().items()}
    x = input_of(3, K)
    kept, bias = x.clone(), layer.bias.clone()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(x, kept)
    assert torch.equal(layer.bias, bias)
    assert all(torch.equal(t, stored[name]) for name, t in layer.stored().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize(
    "name",
    [
        "int8",
        "zero points",
        "groups",
        "by time",
        "regions",
        "codes",
        "symmetric codes",
        "scaled and rotated",
        "rotated",
        "rotated only",
    ],
)
def test_feed_forward_in_two_products_is_its_modules_one_by_one(name, approximate, dtype):
    """To the bit, whoever looks; and near what native code or torch makes of it."""
    one, two = SPECS_OF_BOTH[name]
    block = Block((one, two))
    block.ff.net[0].approximate = approximate
    x = torch.randn(3, 5, WIDTH).to(dtype)
    with torch.no_grad():
        plain = block(x.float())
        fuse(block)
        for place in ("ff.net.0.proj", "ff.net.2"):
            block.get_submodule(place).kernel = INT8
        with spied() as calls:
            got = block(x)
            assert [name for name, _ in calls] == ["feed_forward"]
            handle = block.ff.net[2].register_forward_hook(lambda *_: None)
            want = block(x)
            handle.remove()
    assert "feed_forward" not in [name for name, _ in calls[1:]]
    assert gpu_linears.may_chain(calls[0][1][0][1]) == name.endswith("codes")
    assert got.dtype == dtype
    assert torch.equal(got, want)
    assert float((got.float() - plain).norm() / plain.norm()) < 3e-2


def test_linears_of_two_kernels_run_apart():
    block = Block(SPECS_OF_BOTH["int8"])
    fuse(block)
    block.ff.net[2].kernel = INT8
    with torch.no_grad(), spied() as calls:
        assert block(torch.randn(3, 5, WIDTH)).isfinite().all()
    assert not calls


def test_they_are_in_the_table():
    assert named("triton_int8") is INT8
    assert named("triton_decode") is DECODE
