"""Quantized linears as modules: plain buffers under a spec.

``QLinear`` computes ``y = decode(weight) . act(rotate(pre_scale * x)) + bias`` (+ a low-rank branch). Which kernel does it
is chosen from the spec, the shape and the device; the buffers are the same for all. It is an ``nn.Linear`` by ancestry, so
that LoRA adapters attach, but its weight is packed and cannot be written: see ``PackedWeight``.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from dither.clock import Clock, Read, start_clock
from dither.errors import BadCheckpoint
from dither.kernels import Inputs, Kernel, choose, is_simulated
from dither.kernels.gradient import run
from dither.numerics import decode, groups, layout, rotate, unrotate
from dither.packed import PackedWeight
from dither.spec import Format, LinearSpec, Plan, Spec, Timed

__all__ = [
    "Clock",
    "PackedWeight",
    "QLinear",
    "Read",
    "TimedLinear",
    "build",
    "install",
    "packed_tensors",
    "replace",
    "tensor_layout",
]

Layout: TypeAlias = dict[str, tuple[tuple[int, ...], torch.dtype]]


def _stored(prefix: str, fmt: Format | None, shape: tuple[int, int], dtype: torch.dtype) -> Layout:
    """Names, shapes and dtypes of one stored matrix."""
    if fmt is None:
        return {f"{prefix}_dense": (shape, dtype)}
    return {f"{prefix}_{k}": v for k, v in layout(fmt, shape).items()}


def tensor_layout(spec: LinearSpec, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Layout:
    """Every buffer of a QLinear of this spec and shape (N, K), bias apart; ``dtype`` is that of full-precision parts."""
    n, k = shape
    out = _stored("weight", spec.weight, shape, dtype)
    if spec.act is not None:
        count = groups(k, spec.act.grid.group)  # a dynamic grid stores nothing, but its groups must divide too
        if spec.act.static:
            out["act_scale"] = ((spec.act.rows, count), torch.float32)
        if spec.act.static and not spec.act.grid.symmetric:
            out["act_zero"] = ((spec.act.rows, count), torch.uint8)
    if spec.pre_scale:
        out["pre_scale"] = ((spec.pre_scale, k), torch.float32)
    if spec.rotation is not None:
        out["rotation_signs"] = ((k,), torch.int8)
    if spec.lowrank is not None:
        out |= _stored("lowrank_a", spec.lowrank.weight, (spec.lowrank.rank, k), dtype)
        out |= _stored("lowrank_b", spec.lowrank.weight, (n, spec.lowrank.rank), dtype)
    return out


class QLinear(nn.Linear):
    """A linear under a ``LinearSpec``.

    Args:
        spec: what is stored and computed.
        in_features, out_features: K and N.
        bias: parameter (N,) or None; kept as it is.
        clock: of the model, for specs with tables of several rows.
        device, dtype: of the empty buffers (``dtype`` only of full-precision parts; scales are float32 always).
    """

    def __init__(
        self,
        spec: LinearSpec,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        clock: Clock | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: there is no dense weight to create
        self.spec = spec
        self.in_features, self.out_features = in_features, out_features
        self.clock = clock or Clock()
        for name, (shape, kind) in tensor_layout(spec, (out_features, in_features), dtype).items():
            self.register_buffer(name, torch.empty(shape, dtype=kind, device=device))
        self.register_parameter("bias", bias)
        self._kernel: Kernel | None = None
        self._prepared: dict[str, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return (self.out_features, self.in_features)

    @property
    def kernel(self) -> Kernel:
        """The kernel that runs this layer here; assign one to override."""
        if self._kernel is None:
            self._kernel = choose(self.spec, self.shape, next(self.buffers()).device)
        return self._kernel

    @kernel.setter
    def kernel(self, kernel: Kernel) -> None:
        self._kernel, self._prepared = kernel, None

    @property
    def simulated(self) -> bool:
        """Whether activation quantization is imitated in floating point here."""
        return is_simulated(self.spec, self.kernel)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The effective weight (N, K), decoded anew at each access; read-only."""
        dense = self.dequantized().to(self.bias.dtype if self.bias is not None else torch.float32)
        return dense if torch.compiler.is_compiling() else dense.as_subclass(PackedWeight)  # graphs take no subclass

    def stored(self, prefix: str = "weight") -> dict[str, Tensor]:
        """The buffers of one stored matrix by their format's names."""
        head = prefix + "_"
        return {k.removeprefix(head): v for k, v in self._buffers.items() if k.startswith(head) and v is not None}

    def packed(self) -> dict[str, Tensor]:
        """Codes, scales and tables by name: the buffers whose dtype is part of what they mean."""
        return {k: v for k, v in self.named_buffers(recurse=False) if not k.endswith("_dense")}

    def load(self, tensors: Mapping[str, Tensor]) -> "QLinear":
        """Take these tensors as the buffers of the same names, without a copy; names, shapes and dtypes must fit."""
        for name, tensor in tensors.items():
            have = self._buffers.get(name)
            if have is None or have.shape != tensor.shape or have.dtype != tensor.dtype:
                raise BadCheckpoint(f"tensor '{name}' {tuple(tensor.shape)} {tensor.dtype} does not fit {self.spec}")
            self._buffers[name] = tensor
        self._prepared = None
        return self

    def dequantized(self) -> Tensor:
        """The matrix (N, K) float32 that the layer multiplies unquantized inputs with, low-rank branch included."""
        w = self._matrix("weight", self.spec.weight, self.shape)
        if (low := self.spec.lowrank) is not None:
            a = self._matrix("lowrank_a", low.weight, (low.rank, self.in_features))
            w = w + self._matrix("lowrank_b", low.weight, (self.out_features, low.rank)) @ a
        if self.spec.rotation is not None:
            w = unrotate(w, self.get_buffer("rotation_signs"), self.spec.rotation.block)
        return w * self.get_buffer("pre_scale")[:1] if self.spec.pre_scale else w

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the dtype of x. Gradients pass straight through the quantization of x."""
        return self.compute(x, self.bias)

    def compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``forward`` with a bias (N,) from elsewhere."""
        spec, dtype = self.spec, x.dtype
        if spec.pre_scale:
            x = x * self.clock.pick(self.get_buffer("pre_scale"), x).to(dtype)
        if spec.rotation is not None:
            x = rotate(x, self.get_buffer("rotation_signs"), spec.rotation.block).to(dtype)
        scale = zero = None
        if spec.act is not None and spec.act.static:
            scale = self.clock.pick(self.get_buffer("act_scale"), x)
            zero = None if spec.act.grid.symmetric else self.clock.pick(self.get_buffer("act_zero"), x)
        kernel, stored = self.kernel, self.stored()
        if self._prepared is None:
            self._prepared = kernel.prepare(spec, self.shape, stored)
        y = run(kernel, Inputs(x, spec, self.shape, stored, scale, zero, bias, self._prepared))
        if (low := spec.lowrank) is not None:
            a = self._matrix("lowrank_a", low.weight, (low.rank, self.in_features)).to(x.dtype)
            b = self._matrix("lowrank_b", low.weight, (self.out_features, low.rank)).to(x.dtype)
            y = y + (x @ a.T) @ b.T
        return y.to(dtype)  # a rotation works in float32

    def _matrix(self, prefix: str, fmt: Format | None, shape: tuple[int, int]) -> Tensor:
        stored = self.stored(prefix)
        return stored["dense"].float() if fmt is None else decode(stored, fmt, shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QLinear":
        """Move or cast; scales stay float32 whatever ``.half()`` or ``.to(dtype)`` ask, or quality is lost unseen."""
        kept = self.packed()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = self._buffers[name]
            if after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        self._kernel = self._prepared = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """As always, but what a kernel prepared from the old tensors is forgotten."""
        super()._load_from_state_dict(*args, **kwargs)
        self._prepared = None

    def extra_repr(self) -> str:
        """Shape, formats and the parts that are there."""
        act = "full precision" if self.spec.act is None else str(self.spec.act)
        parts = [f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"]
        parts += [f"weight={self.spec.weight or 'full precision'}, act={act}"]
        parts += [name for name in ("pre_scale", "rotation", "lowrank") if getattr(self.spec, name)]
        return ", ".join(parts)


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
        self.out_features = variants[0].out_features
        self.select = select
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., K) to (B, ..., N)."""
        if torch.compiler.is_compiling():
            return self._all(x)
        chosen: list[int] = [self.select[r] for r in self.clock.row.tolist()]
        if len(set(chosen)) == 1:
            return self._run(chosen[0], x)
        index = self._spread(torch.tensor(chosen, device=x.device), x)
        y, row = x.new_empty(*x.shape[:-1], self.out_features), self.clock.row
        for i in sorted(set(chosen)):
            mine = index == i
            self.clock.row = row[torch.tensor(chosen, device=row.device) == i]
            y[mine] = self._run(i, x[mine])
        self.clock.row = row
        return y

    def _all(self, x: Tensor) -> Tensor:
        """In a compiled graph nothing may depend on the values of the clock: all variants run, and rows are selected."""
        select = torch.tensor(self.select, device=x.device)
        index = self._spread(select[self.clock.row.to(x.device)], x).view(-1, *(1,) * (x.ndim - 1))
        y = self._run(0, x)
        for i in range(1, len(self.variants)):
            y = torch.where(index == i, self._run(i, x), y)
        return y

    def _spread(self, index: Tensor, x: Tensor) -> Tensor:
        """One index for each of the clock's samples, as one for each row of x: layers may fold frames into the batch."""
        if x.shape[0] % index.shape[0]:
            raise BadCheckpoint(f"input batch {x.shape[0]} is no multiple of the clock's batch {index.shape[0]}")
        return index.repeat_interleave(x.shape[0] // index.shape[0])

    def _run(self, index: int, x: Tensor) -> Tensor:
        return cast(QLinear, self.variants[index]).compute(x, self.bias)


def build(
    spec: Spec,
    like: nn.Linear,
    clock: Clock | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """An empty module for this spec in place of ``like``, whose bias it keeps."""
    if isinstance(spec, Timed):
        shared = clock or Clock()
        made = [QLinear(v, like.in_features, like.out_features, None, shared, device, dtype) for v in spec.variants]
        return TimedLinear(made, spec.select, like.bias, shared)
    return QLinear(spec, like.in_features, like.out_features, like.bias, clock, device, dtype)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where ``name`` is."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, module)


def install(
    model: nn.Module,
    plan: Plan,
    read: Read,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Clock:
    """Put empty modules where the plan says, ready to be loaded, and start the clock. BadCheckpoint names a bad layer."""
    clock = Clock(plan.time_edges, plan.branches)
    start_clock(model, clock, read)
    modules = dict(model.named_modules())
    for name, spec in plan.layers.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear):
            raise BadCheckpoint(f"the plan names layer '{name}', which the model does not have as a linear")
        replace(model, name, build(spec, linear, clock, device, dtype))
    return clock


def packed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """``QLinear.packed`` of every layer, under the names of ``model.state_dict()``."""
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, QLinear))
    return {f"{name}.{key}": tensor for name, layer in layers for key, tensor in layer.packed().items()}
