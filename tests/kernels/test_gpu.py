"""Which linears the kernels of Triton take, what they say where they cannot, and what they prepare; no Triton is needed."""

import logging

import pytest
import torch

from dither.errors import DitherError
from dither.gpu import machine
from dither.gpu.launch import memory_for
from dither.kernels import choose, gpu
from dither.numerics import encode
from dither.spec import PER_TENSOR, Act, Codebook, Gaussian, Int, LinearSpec, Log2, Nested, Trellis, TwoRegion

CUDA = torch.device("cuda")
CHOSEN = {
    "triton_int8": [
        (Int(8), Act(Int(8))), (Int(2, False), Act(Int(4, False))), (Int(8, group=PER_TENSOR), Act(Int(8), static=True)),
        (Nested(Int(8, group=8), 4), Act(Int(8))), (Int(8), Act(Int(8, group=8))), (Int(1), Act(Int(8))),
        (Gaussian(4, 256), Act(Int(8))), (Trellis(2, 8, 7, 6), Act(Int(8), static=True, rows=4)),
        (Int(8), Act(TwoRegion(8, True))), (Int(4), Act(TwoRegion(8, True), static=True)),
    ],
    "triton_decode": [(Nested(Int(4), 3), None), (Int(4, group=8), None), (Gaussian(4, 256), None), (Int(1), None)],
    "dequantize": [(Codebook(2, 16), None), (None, None)],
    "reference": [
        (Int(8), Act(Int(1))), (Codebook(2, 16), Act(Int(8))), (None, Act(Int(8))), (Int(8), Act(Log2(8), static=True)),
        (Int(8), Act(TwoRegion(8), static=True)),
    ],
}  # fmt: skip


@pytest.fixture
def gpus(monkeypatch):
    """As if there were GPUs of a capability that the test sets, with Triton unless it says otherwise."""
    found = {"capability": (9, 0), "triton": "3.7.1"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: found["capability"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old GPU")
    monkeypatch.setattr(machine, "triton_version", lambda: found["triton"])
    for cached in (machine._why_not, machine._say):
        cached.cache_clear()
    yield found
    for cached in (machine._why_not, machine._say):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "weight", "act"), [(n, *pair) for n, pairs in CHOSEN.items() for pair in pairs], ids=str
)
def test_selection(name, weight, act, gpus):
    assert choose(LinearSpec(weight, act), (7, 24), CUDA).name == name


@pytest.mark.parametrize("act", [Act(Int(8)), None], ids=str)
def test_a_row_must_fit_a_program(act, gpus):
    spec = LinearSpec(Int(8), act)
    assert choose(spec, (8, 1 << 15), CUDA).name.startswith("triton_")
    assert not choose(spec, (8, (1 << 15) + 8), CUDA).name.startswith("triton_")


def test_nothing_is_said_on_other_devices_or_without_a_gpu(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine._why_not.cache_clear()
    with caplog.at_level(logging.WARNING, logger="dither"):
        assert not any(machine.can_run(torch.device(d)) for d in ("cpu", "meta", "cuda"))
    assert not caplog.records
    machine._why_not.cache_clear()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"triton": None}, "Triton is not installed: pip install 'dither[gpu]'"),
        ({"triton": "3.2.0"}, "Triton 3.2.0 is older than 3.7"),
        ({"capability": (7, 5)}, "Old GPU has compute capability 7.5, and they need 8.0"),
    ],
)
def test_why_not_is_said_in_one_line_once(changes, says, gpus, caplog):
    gpus |= changes
    spec = LinearSpec(Int(8), Act(Int(8)))
    with caplog.at_level(logging.WARNING, logger="dither"):
        assert choose(spec, (16, 24), CUDA).name == "int8_mm"
        assert choose(spec, (16, 32), CUDA).name == "int8_mm"
    assert [r.getMessage() for r in caplog.records] == [
        f"no Triton kernels on this GPU, torch does their work more slowly: {says}"
    ]


def test_memory_that_is_not_there_names_the_layer(monkeypatch):
    x = torch.empty(0)
    monkeypatch.setattr("dither.gpu.launch.is_interpreted", lambda: True)
    with (
        pytest.raises(DitherError, match="no memory left for a linear of 8 x 16 and 4 rows: make batches smaller, or"),
        memory_for("a linear of 8 x 16 and 4 rows", x),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_cpu_is_refused_outside_the_interpreter(monkeypatch):
    monkeypatch.setattr("dither.gpu.launch.is_interpreted", lambda: False)
    with (
        pytest.raises(DitherError, match="quantizing cannot run on 'cpu': kernels of Triton need a CUDA device"),
        memory_for("quantizing", torch.empty(0)),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    ("fmt", "names"),
    [
        (Int(8), {"scale"}),
        (Int(8, False), {"scale", "moved"}),
        (Int(4, False), {"scale", "moved"}),
        (Int(4, False, 8), {"scale", "zero"}),
        (Int(3, False), {"scale", "zero"}),
        (Int(1), {"scale", "table"}),
        (Gaussian(4, 256), {"scale", "table"}),
        (Trellis(2, 8, 4, 4), {"scale", "table"}),
    ],
    ids=str,
)
def test_what_is_prepared(fmt, names):
    """Sums only where inputs have zero points; scales are float32, a row each."""
    shape = (16, 32)
    stored = encode(torch.randn(shape), fmt)
    for grid, more in ((Int(8), set()), (Int(8, False), {"sums"})):
        ready = gpu.TRITON_INT8.prepare(LinearSpec(fmt, Act(grid)), shape, stored)
        assert set(ready) == names | more
        assert ready["scale"].dtype == torch.float32
        assert len(ready["scale"]) == 16
