"""Linears that change with the noise level: the clock's row selects, for each sample, what runs.

``TimedLinear`` holds several linears, each with a weight of its own. ``ViewedLinear`` holds one, whose codes are read at
different widths (ViDiT-Q's mixed precision, arXiv 2406.02540, with every weight stored once).
"""

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from dither.clock import Clock
from dither.errors import BadCheckpoint, BadFormat
from dither.kernels import Kernel
from dither.nn.linear import QLinear, Way
from dither.spec import Views

__all__ = ["TimedLinear", "ViewedLinear", "route"]

Run: TypeAlias = Callable[[int, Tensor], Tensor]
"""(index, some samples' x (b, ..., K)) -> their y (b, ..., N)."""


def route(x: Tensor, clock: Clock, select: tuple[int, ...], count: int, run: Run) -> Tensor:
    """Each sample of x (B, ..., K) through ``run`` of its index, ``select[clock row]``; (B, ..., N).

    Args:
        x: may have several rows for each of the clock's samples, as where frames are folded into the batch.
        clock: of the model; it shows the rows of just those samples while they run.
        select: for each row of the clock, the index.
        count: of indices.
        run: does the work.
    """
    if torch.compiler.is_compiling():
        return _all(x, clock, select, count, run)
    chosen: list[int] = [select[r] for r in clock.row.tolist()]
    if len(set(chosen)) == 1:
        return run(chosen[0], x)
    row, mine = clock.row, torch.tensor(chosen)
    index = _spread(mine.to(x.device), x)
    y: Tensor | None = None
    for i in sorted(set(chosen)):
        clock.row = row[(mine == i).to(row.device)]
        part = run(i, x[index == i])
        y = part.new_empty(len(x), *part.shape[1:]) if y is None else y
        y[index == i] = part
    clock.row = row
    return cast(Tensor, y)


def _all(x: Tensor, clock: Clock, select: tuple[int, ...], count: int, run: Run) -> Tensor:
    """In a compiled graph nothing may depend on the values of the clock: everything runs, and rows are selected."""
    index = _spread(torch.tensor(select, device=x.device)[clock.row.to(x.device)], x).view(-1, *(1,) * (x.ndim - 1))
    y = run(0, x)
    for i in range(1, count):
        y = torch.where(index == i, run(i, x), y)
    return y


def _spread(index: Tensor, x: Tensor) -> Tensor:
    """One index for each of the clock's samples, as one for each row of x: layers may fold frames into the batch."""
    if x.shape[0] % index.shape[0]:
        raise BadCheckpoint(f"input batch {x.shape[0]} is no multiple of the clock's batch {index.shape[0]}")
    return index.repeat_interleave(x.shape[0] // index.shape[0])


class TimedLinear(nn.Module):
    """Variants of one linear, without biases; the clock's row selects which one runs for each sample.

    Args:
        variants: the linears.
        select: for each row of the clock, the variant.
        bias: parameter (N,) or None, shared by all (stored once).
        clock: of the model.
    """

    bias: nn.Parameter | None

    def __init__(
        self, variants: list[QLinear], select: tuple[int, ...], bias: nn.Parameter | None, clock: Clock
    ) -> None:
        super().__init__()
        self.variants = nn.ModuleList(variants)
        self.register_parameter("bias", bias)
        self.in_features, self.out_features = variants[0].in_features, variants[0].out_features
        self.select = select
        self.clock = clock

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernel that runs each variant here."""
        return tuple(cast(QLinear, variant).kernel for variant in self.variants)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., K) to (B, ..., N)."""
        return route(x, self.clock, self.select, len(self.variants), self._run)

    def _run(self, index: int, x: Tensor) -> Tensor:
        return cast(QLinear, self.variants[index]).compute(x, self.bias)


class ViewedLinear(nn.Linear):
    """One linear whose weight codes are nested: the clock's row selects how many of their bits each sample reads.

    The weight is stored once, in ``base``; a view has nothing of its own but what its kernel prepares. Like ``QLinear`` it
    is an ``nn.Linear`` by ancestry only.

    Args:
        base: holds the tensors; of ``spec.base``, without a bias.
        spec: the views, and which one runs in each row of the clock.
        bias: parameter (N,) or None, kept as it is.
        clock: of the model.
    """

    base: QLinear
    spec: Views
    clock: Clock
    _views: list[Way]

    def __init__(self, base: QLinear, spec: Views, bias: nn.Parameter | None, clock: Clock) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: there is no dense weight to create
        if base.spec != spec.base or base.bias is not None:
            raise BadFormat(f"views of {spec.base} need a linear of just that, without a bias")
        self.base = base
        self.spec = spec
        self.in_features, self.out_features = base.in_features, base.out_features
        self.clock = clock
        self.register_parameter("bias", bias)
        self._views = [base.way(view) for view in spec.specs]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The effective weight (N, K) at the whole width, decoded anew at each access; read-only."""
        return self.base.decoded(self.bias)

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernel that runs each view here."""
        return tuple(self.base.kernel_of(view) for view in self._views)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., K) to (B, ..., N), in the dtype of x. Scale and rotation of the input are those of every view."""
        seen = self.base.transform(x)
        return route(seen, self.clock, self.spec.select, len(self._views), self._run).to(x.dtype)

    def _run(self, index: int, x: Tensor) -> Tensor:
        return self.base.multiply(x, self.bias, self._views[index])

    def extra_repr(self) -> str:
        """Shape and views; the rest is said by ``base``."""
        views = "; ".join(str(view) for view in self.spec.views)
        return f"in_features={self.in_features}, out_features={self.out_features}, views=[{views}]"
