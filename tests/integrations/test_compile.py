"""torch.compile without graph breaks gives the numbers of eager mode."""

import dataclasses

import pytest
import tiny
import torch

from dither.spec import Plan, TableSpec

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def first_block(plan: Plan) -> Plan:
    """The plan of this block alone."""
    layers = {k: v for k, v in plan.layers.items() if k.startswith("transformer_blocks.0.")}
    own = {
        name: TableSpec(table.rows)
        for name, table in plan.timesteps.items()
        if name.startswith("transformer_blocks.0.")
    }
    return dataclasses.replace(plan, layers=layers, attention={}, timesteps=own)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_equals_eager(backend):
    """Formats, tables, the clock and timed variants; the second call has the same shapes at other times."""
    model = tiny.stamped_dit(first_block(tiny.plan()), num_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for levels, labels in [([900, 500, 100, 500], [1, 2, 10, 10]), ([100, 100, 900, 900], [10, 1, 1, 1])]:
            call = {"timestep": torch.tensor(levels), "class_labels": torch.tensor(labels)}
            torch.testing.assert_close(compiled(X, **call).sample, model(X, **call).sample, rtol=1e-5, atol=1e-6)


def test_gradients_compile():
    model = tiny.stamped_dit(first_block(tiny.timeless()), num_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    call = {"timestep": torch.tensor([900, 1, 5, 7]), "class_labels": torch.tensor([1, 2, 3, 10])}
    grads = []
    for run in (compiled, model):
        x = X.clone().requires_grad_()
        run(x, **call).sample.square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)
