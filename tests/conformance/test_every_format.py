"""What every format must do in every kernel: the output of a ``QLinear`` against a float64 oracle made from ``decode``.

The oracle takes the input as the kernel sees it (scaled and rotated in the layer's own precision), rounds it with
``act_codes`` and ``act_values``, and multiplies in float64. A new format or kernel is one more row.
"""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dither.errors import BadFormat
from dither.kernels import KERNELS, choose, is_simulated, means, named
from dither.kernels.int8 import _matmul
from dither.kernels.native_calls import _has, _means
from dither.native import library
from dither.nn import Clock, QLinear, TimedLinear, ViewedLinear, build
from dither.numerics import act_codes, act_values, decode, dynamic_table, rotate, unpack_int
from dither.spec import (
    PER_TENSOR,
    Act,
    Codebook,
    Float8,
    Gaussian,
    Int,
    LinearSpec,
    Log2,
    LowRank,
    Nested,
    Rotation,
    Timed,
    Trellis,
    TwoRegion,
    View,
    Views,
)

CPU = torch.device("cpu")
WEIGHTS = {
    **{f"w{b}": Int(b) for b in range(1, 9)},
    **{f"w{b} asym": Int(b, False) for b in range(1, 9)},
    "w4 group": Int(4, group=4),
    "w3 asym group": Int(3, False, 6),
    "w8 tensor": Int(8, group=PER_TENSOR),
    "w8 asym tensor": Int(8, False, PER_TENSOR),
    **{f"w{b} of 8": Nested(Int(8), b) for b in (1, 4, 7)},
    **{f"w{b} of 8 asym": Nested(Int(8, False), b) for b in (1, 4, 7)},
    "float8": Float8(),
    "float8 tensor": Float8(PER_TENSOR),
    "float8 group": Float8(6),
    "w2 of 4": Nested(Int(4), 2),
    "w3 of 4 asym": Nested(Int(4, False), 3),
    "w3 of 6": Nested(Int(6), 3),
    "w4 of 8 tensor": Nested(Int(8, False, PER_TENSOR), 4),
    "w4 of 6 asym group": Nested(Int(6, False, 6), 4),
    "codebook": Codebook(2, 16),
    "codebook scaled": Codebook(3, 5, row_scale=True),
    "codebook half": Codebook(2, 16, half=True),
    "gaussian": Gaussian(4, 256),
    "gaussian 3": Gaussian(2, 64),
    "trellis": Trellis(2, 8, 7, 6),
    "trellis 3": Trellis(3, 9, 1, 12),
    "dense": None,
}
ACTS = {
    "none": None,
    **{f"a{b}": Act(Int(b)) for b in range(1, 9)},
    **{f"a{b} asym": Act(Int(b, False)) for b in (1, 2, 4, 8)},
    "a8 group": Act(Int(8, group=4)),
    "a4 asym group": Act(Int(4, False, 6)),
    "a8 tensor": Act(Int(8, group=PER_TENSOR)),
    "a8 static": Act(Int(8), static=True),
    "a8 asym static": Act(Int(8, False), static=True),
    "a8 static rows": Act(Int(8), static=True, rows=4),
    "a8 asym static rows": Act(Int(8, False), static=True, rows=4),
    "float8": Act(Float8()),
    "float8 group": Act(Float8(4)),
    "float8 tensor": Act(Float8(PER_TENSOR)),
    "float8 static rows": Act(Float8(), static=True, rows=4),
    "a8 two regions": Act(TwoRegion(8, signed=True)),
    "a6 two regions static rows": Act(TwoRegion(6, signed=True), static=True, rows=4),
    "a4 two regions static group": Act(TwoRegion(4, signed=True, group=6), static=True),
    "a8 small and large": Act(TwoRegion(8), static=True),
    "a8 small and large, shift": Act(TwoRegion(8, shift=True), static=True, rows=4),
    "a4 log2": Act(Log2(4)),
    "a8 log2 static": Act(Log2(8), static=True, rows=4),
}
PARTS = {
    "plain": LinearSpec(),
    "scaled": LinearSpec(pre_scale=1),
    "scaled by time": LinearSpec(pre_scale=4),
    "rotated": LinearSpec(rotation=Rotation(12, seed=1)),
    "bias by time": LinearSpec(time_bias=4),
    "low rank": LinearSpec(lowrank=LowRank(2)),
    "low rank int": LinearSpec(lowrank=LowRank(3, Int(8))),
    "all": LinearSpec(pre_scale=4, rotation=Rotation(24), lowrank=LowRank(2), time_bias=1),
}
N, K = 7, 24


def spec_of(weight, act, parts: LinearSpec = PARTS["plain"]) -> LinearSpec:
    return replace(parts, weight=weight, act=act)


def layer_of(spec: LinearSpec, n: int = N, k: int = K, bias: bool = True, seed: int = 0) -> QLinear:
    """Filled with a random weight, under a clock that stands at two different times."""
    clock = Clock((0.5,), branches=2)
    clock.set(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]))
    torch.manual_seed(seed)
    dense = nn.Linear(k, n, bias=bias)
    made = build(spec, dense, clock)
    tiny.fill(made, dense.weight, seed)
    return made.requires_grad_(False)


def matrix(layer: QLinear, prefix: str, fmt, shape: tuple[int, int]) -> Tensor:
    stored = layer.stored(prefix)
    return (stored["dense"] if fmt is None else decode(stored, fmt, shape)).double()


def oracle(layer: QLinear, x: Tensor) -> Tensor:
    """The linear in float64."""
    spec, dtype, (n, k) = layer.spec, x.dtype, layer.shape
    if spec.pre_scale:
        x = x * layer.clock.pick(layer.get_buffer("pre_scale"), x).to(dtype)
    if spec.rotation is not None:
        x = rotate(x, layer.get_buffer("rotation_signs"), spec.rotation.block).to(dtype)
    seen = x
    if spec.act is not None:
        seen = x.float()
        table = dynamic_table(seen, spec.act.grid) if not spec.act.static else {}
        table |= {name: layer.clock.pick(t, x) for name, t in layer.stored("act").items()}
        seen = act_values(act_codes(seen, spec.act.grid, table), spec.act.grid, table)
    y = seen.double() @ matrix(layer, "weight", spec.weight, (n, k)).T
    if (low := spec.lowrank) is not None:
        a, b = (
            matrix(layer, "lowrank_a", low.weight, (low.rank, k)),
            matrix(layer, "lowrank_b", low.weight, (n, low.rank)),
        )
        y = y + x.double() @ a.T @ b.T
    if spec.time_bias:
        y = y + layer.clock.pick(layer.get_buffer("time_bias"), x).double()
    return y if layer.bias is None else y + layer.bias.double()


def assert_close(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == want.shape
    assert float((got.double() - want).abs().max()) <= tolerance * max(float(want.abs().max()), 1e-3)


def input_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_every_pair_of_formats(weight, act):
    layer = layer_of(spec_of(weight, act))
    for x in (input_of(2, K), input_of(2, 5, K)):
        got = layer(x)
        assert_close(got, oracle(layer, x))
        layer.kernel = named("reference")
        assert_close(layer(x), oracle(layer, x))
        layer.kernel = choose(layer.spec, layer.shape, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("act", [None, Act(Int(8)), ACTS["a8 asym static rows"]], ids=["none", "dynamic", "static"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_every_part_in_every_dtype(parts, act, dtype):
    layer = layer_of(spec_of(Int(4, False), act, parts)).to(dtype)
    for x in (input_of(2, K).to(dtype), input_of(2, 5, K).to(dtype)):
        got = layer(x)
        assert got.dtype == dtype
        assert_close(got, oracle(layer, x), 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("weight", [Int(8), Int(5, False), Nested(Int(8, False), 4), Float8(), Codebook(1, 9)], ids=str)
@pytest.mark.parametrize("act", [None, Act(Int(8)), Act(Int(6, False)), Act(Float8())], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 7, 13), (3, 1, 5), (17, 33, 31), (1, 64, 128)])
def test_odd_shapes_and_single_rows(weight, act, m, n, k):
    if isinstance(weight, Codebook) and weight.size > n * k:
        with pytest.raises(BadFormat, match="9 words for the"):
            layer_of(LinearSpec(weight, act), n, k)
        return
    layer = layer_of(LinearSpec(weight, act), n, k, bias=bool(n % 2))
    assert_close(layer(input_of(m, k)), oracle(layer, input_of(m, k)))
    assert layer(input_of(k)).shape == (n,)


@pytest.mark.parametrize("act", [None, Act(Int(8)), Act(Int(8, False)), ACTS["a8 group"]], ids=str)
@pytest.mark.parametrize("weight", [Int(8), Int(4), Int(4, False), Nested(Int(4), 3), Int(3), Codebook(2, 16)], ids=str)
def test_inputs_of_any_stride(weight, act):
    layer = layer_of(spec_of(weight, act))
    wide = input_of(4, 2 * K)
    for x in (
        input_of(K, 5).T,
        input_of(2, K, 5).mT,
        wide[:, ::2],
        wide[::2, K:],
        input_of(1, K).expand(3, K),
        wide[:1, :K],
    ):
        assert_close(layer(x), oracle(layer, x))


def test_zero_and_constant_inputs():
    for act in ACTS.values():
        layer = layer_of(spec_of(Int(8), act))
        for x in (torch.zeros(2, 3, K), torch.ones(2, 3, K), -torch.ones(2, 3, K)):
            assert_close(layer(x), oracle(layer, x))


def test_timed_variants_are_their_own_oracles():
    clock = Clock((0.5,), branches=2)
    torch.manual_seed(0)
    dense = nn.Linear(K, N)
    specs = (spec_of(Int(8), Act(Int(8))), spec_of(Int(4, False), None, PARTS["all"]))
    layer = build(Timed(specs, (0, 0, 1, 1)), dense, clock)
    assert isinstance(layer, TimedLinear)
    for i, part in enumerate(layer.variants):
        tiny.fill(part, dense.weight, i)
    x, level, branch = input_of(2, 5, K), torch.tensor([0.1, 0.9]), torch.tensor([1, 0])
    clock.set(level, branch)
    with torch.no_grad():
        got = layer(x)
        for i in range(2):
            clock.set(level[i : i + 1], branch[i : i + 1])
            assert_close(got[i : i + 1], oracle(layer.variants[i], x[i : i + 1]) + dense.bias.double())


@pytest.mark.parametrize("weight", [Int(8), Int(8, False), Int(6), Int(4, False)], ids=str)
@pytest.mark.parametrize("parts", [PARTS["plain"], PARTS["all"]], ids=["plain", "all"])
def test_views_are_the_linears_of_their_specs(weight, parts):
    """Each view is held against a layer of its own, filled with the tensors of the base."""
    clock = Clock((0.5,), branches=2)  # four rows, as the tables of "all" have
    base = spec_of(weight, Act(Int(8)), parts)
    views = (View(weight.bits, Act(Int(8))), View(3, Act(Int(4, False))), View(2))
    dense = nn.Linear(K, N).requires_grad_(False)
    layer = build(Views(base, views, (0, 0, 1, 2)), dense, clock)
    assert isinstance(layer, ViewedLinear)
    tiny.fill(layer.base, dense.weight, 1)
    level, branch, x = torch.tensor([0.1, 0.4, 0.9, 0.5]), torch.tensor([1, 0, 0, 1]), input_of(4, 5, K)
    clock.set(level, branch)
    got = layer(x)
    for i, index in enumerate((0, 0, 1, 2)):
        clock.set(level[i : i + 1], branch[i : i + 1])
        single = build(layer.spec.specs[index], dense, clock)
        assert isinstance(single, QLinear)
        single.load(dict(layer.base.named_buffers()))
        assert single.kernel is layer.kernels[index]
        assert not single.simulated
        assert_close(got[i : i + 1], oracle(single, x[i : i + 1]))


# --- the integer kernel


FORMATS = st.builds(Int, st.integers(1, 8), st.booleans(), st.sampled_from([0, PER_TENSOR])).filter(
    lambda f: not (f.bits == 1 and f.symmetric)
)


def read_at(bits: int, whole: Int) -> Int | Nested:
    return Nested(whole, bits) if bits < whole.bits else whole


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    weight=st.builds(read_at, st.integers(1, 9), FORMATS), grid=FORMATS, static=st.booleans(),
    m=st.integers(1, 20), n=st.integers(2, 20), k=st.integers(2, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_integer_kernels_sum_the_codes_that_the_reference_sums(weight, grid, static, m, n, k, seed):
    layer = layer_of(LinearSpec(weight, Act(grid, static=static)), n, k, bias=False, seed=seed)
    # powers of two as scales make every float32 operation exact, so equal integer sums are equal bits
    scales = {name: layer.get_buffer(name) for name in ("weight_scale", "act_scale") if static or name != "act_scale"}
    layer.load({name: torch.where(s > 0, s.log2().round().exp2(), 1.0) for name, s in scales.items()})
    x = input_of(1, m, k, seed=seed)
    assert layer.kernel.name == tiny.INTEGER
    found = layer(x)
    layer.kernel = named("int8_mm")
    real = layer(x)
    assert torch.equal(found, real)
    layer.kernel = named("reference")
    want = layer(x)
    if static:
        assert torch.equal(real, want)
    else:  # the scale of an input is no power of two: (s_x a) w against s_x (a w)
        assert_close(real, want.double(), 1e-6)


@pytest.mark.parametrize("shape", [(7, 1), (1, 24)])
def test_int8_mm_refuses_axes_of_one_on_the_cpu(shape):
    """oneDNN answers with garbage there."""
    assert not named("int8_mm").when(LinearSpec(Int(8), Act(Int(8))), shape, CPU)


def test_int8_mm_of_one_row_whose_stride_says_nothing():
    """torch.compile writes strides of 0 for an axis of length 1."""
    call = layer_of(LinearSpec(Int(8), Act(Int(8))))
    a, codes = torch.arange(K, dtype=torch.int8), unpack_int(call.stored(), Int(8), K)
    got = _matmul(a.as_strided((1, K), (0, 1)), codes)
    assert torch.equal(got.long(), (a.long() @ codes.long().T)[None])


def test_int8_mm_is_exact_at_the_ends_of_the_codes():
    for fmt in (Int(8), Int(8, False)):
        layer = layer_of(LinearSpec(fmt, Act(fmt, static=True)), 5, 1152, bias=False)
        one = {
            "act_scale": torch.ones(1, 1),
            "weight_scale": torch.ones(5, 1),
            "weight_codes": torch.full((5, 1152), 128, dtype=torch.uint8),
        }
        zero = (
            {} if fmt.symmetric else {n: torch.full_like(layer.get_buffer(n), 255) for n in ("act_zero", "weight_zero")}
        )
        layer.load({**one, **zero})
        x = torch.full((2, 1152), -1000.0)
        step = -128.0 if fmt.symmetric else -127.0  # code 128 is -128, or 128 - 255
        lowest = -128.0 if fmt.symmetric else -255.0
        assert layer(x).unique().tolist() == [1152 * step * lowest]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("weight", [Int(8), Int(8, False), Int(4), Nested(Int(8, False), 5)], ids=str)
@pytest.mark.parametrize("grid", [Int(8), Int(8, False)], ids=str)
@pytest.mark.parametrize("m", [1, 17, 40])
def test_int8_mm_on_cuda(weight, grid, m):
    layer = layer_of(LinearSpec(weight, Act(grid)), 16, 64)
    want = oracle(layer, input_of(m, 64))
    layer.to("cuda")
    layer.kernel = named("int8_mm")
    assert_close(layer(input_of(m, 64).cuda()).cpu(), want)


# --- which kernel runs what


NATIVE = {
    "cpu_int8": [
        (Int(8), Act(Int(8))), (Int(2, False), Act(Int(4, False))), (Int(8, group=PER_TENSOR), Act(Int(8), static=True)),
        (Nested(Int(8, group=8), 4), Act(Int(8))), (Int(8, group=8), Act(Int(8))), (Int(8), Act(Int(8, group=8))),
        (Int(1), Act(Int(8))), (Gaussian(4, 256), Act(Int(8))), (Trellis(2, 8, 1, 6), Act(Int(8))),
        (Int(8), Act(TwoRegion(8, True), static=True)), (Int(8), Act(TwoRegion(8, True))),
    ],
    "int8_mm": [(Trellis(2, 8, 7, 6), Act(Int(8)))],
    "cpu_decode": [(Nested(Int(4), 3), None), (Int(4, group=8), None), (Gaussian(4, 256), None), (Int(1), None)],
    "dequantize": [(Codebook(2, 16), None), (None, None), (Trellis(2, 8, 7, 6), None), (Float8(), None)],
    "reference": [
        (Int(8), Act(Int(1))), (Codebook(2, 16), Act(Int(8))), (None, Act(Int(8))), (Int(8), Act(Log2(8), static=True)),
        (Float8(), Act(Float8())), (Float8(), Act(Int(8))), (Int(8), Act(Float8())),
    ],
}  # fmt: skip
SELECTION = {
    "int8_mm": [
        (Int(8), Act(Int(8))), (Int(2, False), Act(Int(4, False))), (Int(8, group=PER_TENSOR), Act(Int(8), static=True)),
        (Nested(Int(8), 1), Act(Int(8))),
    ],
    "dequantize": [(Nested(Int(4), 3), None), (Int(4, group=8), None), (Codebook(2, 16), None), (None, None)],
    "reference": [
        (Nested(Int(8, group=8), 4), Act(Int(8))),
        (Int(8, group=8), Act(Int(8))), (Int(8), Act(Int(8, group=8))), (Int(1), Act(Int(8))),
        (Int(8), Act(Int(1))), (Codebook(2, 16), Act(Int(8))), (None, Act(Int(8))),
        (Float8(), Act(Float8())), (Float8(), Act(Int(8))), (Int(8), Act(Float8())),
    ],
}  # fmt: skip


GPU = {"triton_int8", "triton_decode", "scaled_mm"}
"""What they select is in ``kernels/test_gpu.py`` and ``kernels/test_float8.py``."""


def test_every_kernel_is_in_the_selection():
    assert set(NATIVE) == {k.name for k in KERNELS} - GPU
    assert KERNELS[-1].name == "reference"


def rows(table):
    return [(name, *pair) for name, pairs in table.items() for pair in pairs]


@pytest.fixture
def torch_alone(monkeypatch):
    """No native code."""
    monkeypatch.setenv("DITHER_NATIVE", "off")
    for cached in (library, _means, _has):
        cached.cache_clear()
    yield
    for cached in (library, _means, _has):
        cached.cache_clear()


@pytest.mark.skipif(means() is None, reason="no native code on this machine")
@pytest.mark.parametrize(("kernel", "weight", "act"), rows(NATIVE), ids=str)
def test_selection_with_native_code(kernel, weight, act):
    selected(kernel, weight, act)


@pytest.mark.parametrize(("kernel", "weight", "act"), rows(SELECTION), ids=str)
def test_selection_of_torch_alone(kernel, weight, act, torch_alone):
    selected(kernel, weight, act)


def selected(kernel, weight, act):
    spec = LinearSpec(weight, act)
    found = choose(spec, (N, K), CPU)
    assert found.name == kernel
    assert is_simulated(spec, found) == (kernel == "reference")
    assert is_simulated(spec, named("reference")) == (act is not None)


def test_cuda_without_triton_wants_multiples_of_eight(monkeypatch):
    monkeypatch.setattr("dither.kernels.gpu.can_run", lambda device: False)
    spec = LinearSpec(Int(8), Act(Int(8)))
    assert choose(spec, (16, 24), torch.device("cuda")).name == "int8_mm"
    assert choose(spec, (16, 25), torch.device("cuda")).name == "reference"
    assert choose(spec, (17, 24), torch.device("cuda")).name == "reference"


def test_a_format_that_does_not_fit_is_refused_with_its_numbers():
    for fmt in (Int(4, group=5), Codebook(5, 16)):
        with pytest.raises(BadFormat, match="5 does not divide the 24 input channels"):
            build(LinearSpec(fmt), nn.Linear(24, 8))
