"""Ceilings of the GPU, and single linears: each cell is held against float64 before it is timed."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.blocks import FLUX, XL, packed
from benchmarks.gpu.clock import Budget, Time, replayed
from dither.errors import DitherError
from dither.gpu import WHOLE
from dither.numerics import act_quantize, dynamic_table
from dither.spec import Act, Float8, Int, LinearSpec

SHAPES = {
    "qkv": (3 * XL.width, XL.width),
    "proj": (XL.width, XL.width),
    "fc1": (4 * XL.width, XL.width),
    "fc2": (XL.width, 4 * XL.width),
    "flux fc1": (4 * FLUX.width, FLUX.width),
}
ROWS = (512, 4096, 16384)
SIDE = 8192
"""Of the square product that ceilings are taken from."""
MOST_ERROR = 5e-3
"""Of a layer, relative: outputs are rounded to bfloat16."""


def ceilings() -> dict[str, Any]:
    """What the GPU reaches on one large product, by whoever multiplies, and on a copy: shares, of bfloat16's rate."""
    x = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    ours = packed(nn.Linear(SIDE, SIDE, device="cuda"), LinearSpec(Int(8), Act(Int(8))))
    one = torch.ones(SIDE, 1, device="cuda")
    given = arguments(SIDE, SIDE, SIDE, WHOLE, device="cuda")
    a = given[0]
    calls: dict[str, Callable[[], Any]] = {
        "bfloat16": lambda: x @ x.T,
        "ours int8": lambda: torch.ops.dither.int8_product(*given),
        "ours int8 with codes": lambda: ours(x),
        "torch._int_mm": lambda: torch._int_mm(a, a.T),
    }
    if torch.cuda.get_device_capability() >= (8, 9):
        x8 = x.to(torch.float8_e4m3fn)
        calls["float8 by rows"] = lambda: torch._scaled_mm(x8, x8.T, one, one.T, out_dtype=torch.bfloat16)
    found = {name: attempt(lambda f=f: replayed(f, inner=4)) for name, f in calls.items()}  # type: ignore[misc]
    return rates(found)


def arguments(
    rows: int,
    n: int,
    k: int,
    nibbles: int,
    device: str,
    gelu: int = 0,
    gated: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Any]:
    """Random ones of ``int8_product``, with a bias, and with a gate for a single sample and a residual if asked."""
    a = torch.randint(-127, 128, (rows, k), device=device, dtype=torch.int8)
    w = torch.randint(-127, 128, (n, k if nibbles == WHOLE else k // 2), device=device, dtype=torch.int8)
    scales = [torch.full((count, 1), 0.01, device=device) for count in (rows, n)]
    bias = torch.zeros(n, device=device, dtype=dtype)
    gate, residual = (torch.ones(1, n, device=device, dtype=dtype), torch.ones(rows, n, device=device, dtype=dtype))
    given: list[Any] = [
        a,
        scales[0],
        None,
        None,
        w if nibbles == WHOLE else w.view(torch.uint8),
        scales[1],
        None,
        None,
        bias,
    ]
    given += [None, None, gate if gated else None, residual if gated else None]
    return [*given, gelu, nibbles, dtype]


def rates(times: dict[str, Time | str]) -> dict[str, Any]:
    """How many times the rate of bfloat16; a reason where there is no time."""
    base = times["bfloat16"]
    assert isinstance(base, Time)
    return {
        n: t if isinstance(t, str) else {**t.told(), "ratio": round(base.median / t.median, 3)}
        for n, t in times.items()
    }


def attempt(make: Callable[[], Any]) -> Any:
    """What it gives, or why it gives nothing, in one line."""
    try:
        return make()
    except Exception as e:
        return f"n/a ({type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:160]})"


def layer(name: str, rows: int) -> dict[str, Any]:
    """One linear at one number of rows: bfloat16, and ours at 8 and 4 bits, with and without zero points, and in float8."""
    n, k = SHAPES[name]
    torch.manual_seed(0)
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    dense = nn.Linear(k, n, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    times: dict[str, Time | str] = {"bfloat16": replayed(lambda: F.linear(x, dense.weight, dense.bias), inner=4)}
    for title, spec in (
        ("ours w8a8", LinearSpec(Int(8), Act(Int(8)))),
        ("ours w8a8 asymmetric", LinearSpec(Int(8), Act(Int(8, False)))),
        ("ours fp8", LinearSpec(Float8(), Act(Float8()))),
        ("ours w4a8", LinearSpec(Int(4), Act(Int(8)))),
        ("ours w4a8 groups of 64", LinearSpec(Int(4, group=64), Act(Int(8)))),
    ):
        made = packed(dense, spec)
        times[title] = attempt(lambda made=made: _checked(made, x))  # type: ignore[misc]
    return {"layer": name, "rows": rows, "shape": [n, k], "times": rates(times)}


def _checked(made: Any, x: Tensor) -> Time:
    run = runner(made)
    error = distance(run(x), expected(made, x))
    if error > MOST_ERROR:
        raise DitherError(f"wrong by {error:.2g}: not timed")
    return replayed(lambda: run(x), inner=4)


def runner(made: Any) -> Callable[[Tensor], Tensor]:
    """The kernel of a linear; around torch's product of float8, what rounds its inputs is compiled."""

    def run(x: Tensor) -> Tensor:
        y: Tensor = made(x)
        return y

    if made.kernel.name != "scaled_mm":
        return run
    torch.compiler.reset()  # or it would give up after some linears
    return torch.compile(run, dynamic=False)


def expected(made: Any, x: Tensor) -> Tensor:
    """In float64, of the rounded input."""
    grid = made.spec.act.grid
    seen = act_quantize(x.float(), grid, dynamic_table(x.float(), grid))
    return seen.double() @ made.dequantized().double().T + made.bias.double()


def distance(got: Tensor, want: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def measured(budget: Budget, reserve: float) -> list[dict[str, Any]]:
    """All cells that fit into what the budget leaves beyond a reserve in seconds."""
    found: list[dict[str, Any]] = []
    for rows in ROWS:
        for name in SHAPES:
            if budget.left < reserve:
                found.append({"layer": name, "rows": rows, "times": "n/a (no time was left)"})
            else:
                found.append(layer(name, rows))
    return found
