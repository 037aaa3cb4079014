"""``QLinear``: a linear under a ``LinearSpec``, as plain buffers.

    y = decode(weight) . act(rotate(pre_scale * x)) + bias        (+ a low-rank branch, + a bias by noise level)

Which kernel computes it is chosen from the spec, the shape and the device; the buffers are the same for all. It is an
``nn.Linear`` by ancestry, so that LoRA adapters attach, but its weight is packed and cannot be written: see
``PackedWeight``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dither.clock import Clock
from dither.errors import BadFormat
from dither.kernels import Inputs, Kernel, choose, is_simulated
from dither.kernels.fusion import Around, Branch, Fusion, Turn, fusion_of
from dither.kernels.gradient import asks, run, turned
from dither.nn.buffers import Digests, keep_dtypes, take
from dither.numerics import decode, layout, table_layout, unrotate
from dither.packed import PackedWeight
from dither.spec import Format, LinearSpec

__all__ = ["Layout", "QLinear", "Way", "tensor_layout"]

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
        out |= {f"act_{name}": entry for name, entry in table_layout(spec.act, k).items()}
    if spec.pre_scale:
        out["pre_scale"] = ((spec.pre_scale, k), torch.float32)
    if spec.rotation is not None:
        out["rotation_signs"] = ((k,), torch.int8)
    if spec.lowrank is not None:
        out |= _stored("lowrank_a", spec.lowrank.weight, (spec.lowrank.rank, k), dtype)
        out |= _stored("lowrank_b", spec.lowrank.weight, (n, spec.lowrank.rank), dtype)
    if spec.time_bias:
        out["time_bias"] = ((spec.time_bias, n), torch.float32)
    return out


class Way:
    """One way to run stored tensors: a spec, the kernel that does it here, and what the kernel prepared from them.

    Args:
        spec: whose tensors they are.
    """

    def __init__(self, spec: LinearSpec) -> None:
        self.spec = spec
        self.kernel: Kernel | None = None
        self.prepared: dict[str, Tensor] | None = None


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
        self.ways = [Way(spec)]
        self._digests = Digests()
        self._branches: dict[torch.dtype, Branch | None] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return (self.out_features, self.in_features)

    @property
    def kernel(self) -> Kernel:
        """The kernel that runs this layer here; assign one to override, in every way to read the weight."""
        return self.kernel_of(self.ways[0])

    @kernel.setter
    def kernel(self, kernel: Kernel) -> None:
        for way in self.ways:
            way.kernel, way.prepared = kernel, None

    @property
    def simulated(self) -> bool:
        """Whether activation quantization is imitated in floating point here."""
        return is_simulated(self.spec, self.kernel)

    def way(self, spec: LinearSpec) -> Way:
        """Another way to run the tensors of this layer; for ``multiply``."""
        if tensor_layout(spec, self.shape) != tensor_layout(self.spec, self.shape):
            raise BadFormat(f"{spec} reads other tensors than {self.spec} stores")
        self.ways.append(Way(spec))
        return self.ways[-1]

    def kernel_of(self, way: Way) -> Kernel:
        """The kernel that runs the layer this way here."""
        if way.kernel is None:
            way.kernel = choose(way.spec, self.shape, next(self.buffers()).device)
        return way.kernel

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The effective weight (N, K), decoded anew at each access; read-only."""
        return self.decoded(self.bias)

    def decoded(self, bias: Tensor | None) -> Tensor:
        """``weight`` in the dtype of a bias from elsewhere."""
        dense = self.dequantized().to(torch.float32 if bias is None else bias.dtype)
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
        take(self, tensors, self.spec)
        self._forget()
        return self

    def dequantized(self) -> Tensor:
        """The matrix (N, K) float32 that the layer multiplies unquantized inputs with, low-rank branch included."""
        w = self._matrix("weight", self.spec.weight, self.shape)
        if self.spec.lowrank is not None:
            a, b = self._factors()
            w = w + b @ a
        if self.spec.rotation is not None:
            w = unrotate(w, self.get_buffer("rotation_signs"), self.spec.rotation.block)
        return w * self.get_buffer("pre_scale")[:1] if self.spec.pre_scale else w

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the dtype of x. Gradients pass straight through the quantization of x."""
        return self.compute(x, self.bias)

    def compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``forward`` with a bias (N,) from elsewhere."""
        found = self._in_one_call(x, bias)
        return self.multiply(self.transform(x), bias, self.ways[0]).to(x.dtype) if found is None else found

    def _in_one_call(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """``compute`` where scale, rotation and branch are better done beside the product; None elsewhere."""
        fusion = fusion_of(x) if self.transforms or self.spec.lowrank is not None else None
        if fusion is None or not fusion.rereads or not self.runs_in(fusion, x.dtype) or asks(x, bias):
            return None
        turn = self.turn(fusion, x.dtype)
        seen = x if turn is not None else self.transform(x)
        return self.later(fusion.linears([self.call(seen, bias, fusion)], turn or Turn(), Around())[0])

    def runs_in(self, fusion: Fusion, dtype: torch.dtype) -> bool:
        """Whether this device runs the layer, its branch included, on inputs of this dtype."""
        return self.kernel is fusion.kernel and (self.spec.lowrank is None or self._branch(fusion, dtype) is not None)

    def call(self, x: Tensor, bias: Tensor | None, fusion: Fusion) -> Inputs:
        """What this device sees of inputs, in the layer's first way."""
        given = self.inputs(x, bias, self.ways[0])
        return given if self.spec.lowrank is None else replace(given, branch=self._branch(fusion, x.dtype))

    def transform(self, x: Tensor) -> Tensor:
        """``rotate(pre_scale * x)``, (..., K) in the dtype of x; for layers that read the same tensor only once."""
        if not self.transforms:
            return x
        if not self._may_share(x):
            return self._transform(x)
        key, last = self._transform_key(), self.clock.last
        found = last.get(x, key)
        if found is None:
            found = self._transform(x)
            last.put(x, key, found)
        return found

    @property
    def transforms(self) -> bool:
        """Whether ``transform`` does anything."""
        return bool(self.spec.pre_scale) or self.spec.rotation is not None

    def transforms_like(self, other: "QLinear") -> bool:
        """Whether both make the same of one tensor; False where that cannot be told."""
        if not self.transforms and not other.transforms:
            return True
        told = self._can_tell(other, self._transforms() + other._transforms())
        return told and self._transform_key() == other._transform_key()

    def ranges_like(self, other: "QLinear") -> bool:
        """Whether both round by equal stored ranges, if by any; False where that cannot be told."""
        mine, others = self.stored("act"), other.stored("act")
        if not mine and not others:
            return True
        if mine.keys() != others.keys() or not self._can_tell(other, [*mine.values(), *others.values()]):
            return False
        return self._digests.of("act", [*mine.values()]) == other._digests.of("act", [*others.values()])

    def _can_tell(self, other: "QLinear", tensors: list[Tensor]) -> bool:
        """Whether tensors of both can be compared: not in graphs, not by different times, and only if changes are counted."""
        known = not torch.compiler.is_compiling() and self.clock is other.clock
        return known and not any(t.is_inference() for t in tensors)

    def turn(self, fusion: Fusion, dtype: torch.dtype) -> Turn | None:
        """What ``transform`` does to inputs of this dtype, for this device; None where it does not know it."""
        spec = self.spec
        if spec.pre_scale > 1 or not fusion.turns(spec, self.in_features, dtype):
            return None
        pre = self.get_buffer("pre_scale").flatten() if spec.pre_scale else None
        if spec.rotation is None:
            return Turn(pre)
        return Turn(pre, self.get_buffer("rotation_signs"), spec.rotation.block)

    def _transform(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if self.spec.pre_scale:
            x = x * self.clock.pick(self.get_buffer("pre_scale"), x).to(dtype)
        if self.spec.rotation is not None:
            x = turned(x, self.get_buffer("rotation_signs"), self.spec.rotation.block)
        return x

    def _may_share(self, x: Tensor) -> bool:
        """Whether a transformed input can be known again: not in graphs, not by time, and only if changes are counted."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.spec.pre_scale > 1:
            return False
        return type(x) is Tensor and not any(t.is_inference() for t in (x, *self._transforms()))

    def _transforms(self) -> list[Tensor]:
        return [t for name in ("pre_scale", "rotation_signs") if (t := self._buffers.get(name)) is not None]

    def _transform_key(self) -> bytes:
        """Digest of what ``_transform`` does. Layers of one key turn equal inputs into equal outputs."""
        block = 0 if self.spec.rotation is None else self.spec.rotation.block
        return f"{self.spec.pre_scale} {block}".encode() + self._digests.of("transform", self._transforms())

    def inputs(self, x: Tensor, bias: Tensor | None, way: Way) -> Inputs:
        """What the kernel of a way sees of a transformed input; ranges are those of its samples' noise levels."""
        spec, stored = way.spec, self.stored()
        table = None
        if spec.act is not None and spec.act.static:
            table = {name: self.clock.pick(t, x) for name, t in self.stored("act").items()}
        if way.prepared is None:
            way.prepared = self.kernel_of(way).prepare(spec, self.shape, stored)
        return Inputs(x, spec, self.shape, stored, table, bias, way.prepared)

    def multiply(self, x: Tensor, bias: Tensor | None, way: Way) -> Tensor:
        """What is left of ``compute`` after ``transform``, in one of the layer's ways."""
        spec = way.spec
        y = run(self.kernel_of(way), self.inputs(x, bias, way))
        if spec.lowrank is not None:
            a, b = (factor.to(x.dtype) for factor in self._factors())
            y = y + (x @ a.T) @ b.T
        return self.later(y)

    def later(self, y: Tensor) -> Tensor:
        """What no kernel does: the bias by noise level."""
        return y + self.clock.pick(self.get_buffer("time_bias"), y).to(y.dtype) if self.spec.time_bias else y

    def _factors(self) -> Branch:
        """A (R, K) and B (N, R) of the branch, float32."""
        low = self.spec.lowrank
        assert low is not None
        a = self._matrix("lowrank_a", low.weight, (low.rank, self.in_features))
        return a, self._matrix("lowrank_b", low.weight, (self.out_features, low.rank))

    def _branch(self, fusion: Fusion, dtype: torch.dtype) -> Branch | None:
        """The branch as epilogues of this device take it, made once; None where they do not."""
        if fusion.branch is None:
            return None
        if dtype not in self._branches:
            a, b = self._factors()
            self._branches[dtype] = fusion.branch(a.to(dtype), b.to(dtype))
        return self._branches[dtype]

    def _forget(self) -> None:
        """What was made of tensors that are no longer there."""
        self._digests, self._branches = Digests(), {}
        for way in self.ways:
            way.prepared = None

    def _matrix(self, prefix: str, fmt: Format | None, shape: tuple[int, int]) -> Tensor:
        stored = self.stored(prefix)
        return stored["dense"].float() if fmt is None else decode(stored, fmt, shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QLinear":
        """Move or cast; packed buffers keep their dtypes."""
        kept = self.packed()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        keep_dtypes(self, kept)
        self._forget()
        for way in self.ways:
            way.kernel = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """As always, but what a kernel prepared from the old tensors is forgotten."""
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def extra_repr(self) -> str:
        """Shape, formats and the parts that are there."""
        act = "full precision" if self.spec.act is None else str(self.spec.act)
        parts = [f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"]
        parts += [f"weight={self.spec.weight or 'full precision'}, act={act}"]
        parts += [name for name in ("pre_scale", "rotation", "lowrank", "time_bias") if getattr(self.spec, name)]
        return ", ".join(parts)
