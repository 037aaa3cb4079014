"""What a model family must say about itself: linears, blocks, sites, and how a call is read.

A *site* is a tensor that one or more linears read. When what produces it is linear in a channel scale c, the scale is
absorbed there exactly and costs nothing at run time (``fold``); otherwise it is an online multiply.

    readers:  W'[:, j] = W[:, j] / c_j
    AdaLN:    x = LN(h) (1 + scale) + shift;  shift rows: W *= c, b *= c;  scale rows: W *= c, b = (1 + b) c - 1
    Rows:     rows of the producing linear: W *= c, b *= c   (V rows, for the attention output projection)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

__all__ = [
    "AdaLN",
    "Adapter",
    "Call",
    "Conditioning",
    "Fold",
    "Kind",
    "Layer",
    "Modulation",
    "Rows",
    "Site",
    "linear_at",
]

Kind: TypeAlias = Literal["qkv", "cross_q", "cross_kv", "attn_out", "fc1", "fc2", "adaln", "embed", "final", "other"]
"""What a linear is for; stages choose formats by it."""


class Modulation(Protocol):
    """How a site ``LN(h) (1 + scale) + shift`` is modulated, known without any picture or prompt.

    That is knowledge of its values, apart from whether a channel scale can be absorbed where they are made.
    """

    def __call__(self, model: nn.Module, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, each (L * classes, K) float32, at these normalized noise levels (L,), for every class and the
        null class; classes = 1 where the noise level alone decides."""


class Conditioning(Protocol):
    """What a modulation linear reads, where noise level and class alone make it."""

    def __call__(self, model: nn.Module, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (L * classes, K) float32 at these normalized noise levels (L,), for every class and the null class, and
        which of them are the null class's, (L * classes,) bool."""


@dataclass(frozen=True)
class AdaLN:
    """The site is ``LN(h) (1 + scale) + shift``; both come from rows of one linear.

    Args:
        linear: name of the modulation linear (R, D).
        shift: first and last-plus-one row of the shift.
        scale: the same of the scale.
    """

    linear: str
    shift: tuple[int, int]
    scale: tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """The site is linear in these output rows of one linear.

    Args:
        linear: name of the producing linear.
        rows: first and last-plus-one row.
    """

    linear: str
    rows: tuple[int, int]


Fold: TypeAlias = AdaLN | Rows


@dataclass(frozen=True)
class Layer:
    """One linear of the model.

    Args:
        name: as in ``model.named_modules()``.
        kind: what it is for.
        keep: why it stays in full precision by default, or empty.
        block: name of the block it belongs to, or empty.
        parts: widths of the tensors that it reads side by side, in order; empty where it reads one.
    """

    name: str
    kind: Kind
    keep: str = ""
    block: str = ""
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Site:
    """A tensor that linears read.

    Args:
        name: of the site; any, but unique in its model.
        readers: the linears, each of which is read by no other site.
        fold: where its channel scale can be absorbed exactly; ``None``: nowhere.
        modulation: what makes its channels; ``None`` where more than noise level and class decides (a prompt).
        inputs: the site itself, where noise level and class alone make it.
    """

    name: str
    readers: tuple[str, ...]
    fold: Fold | None = None
    modulation: Modulation | None = None
    inputs: Conditioning | None = None


@dataclass(frozen=True)
class Call:
    """One call of the denoiser, as a sampler made it; tensors on the CPU, batch first."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Adapter(Protocol):
    """All that dither must know of a model family. Adapters are frozen dataclasses without state."""

    family: str

    def layers(self, model: nn.Module) -> Sequence[Layer]:
        """Every ``nn.Linear`` (or quantized linear in its place), in call order where known."""

    def blocks(self, model: nn.Module) -> Sequence[str]:
        """Names of the transformer blocks in call order."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Sites of the linears inside the blocks; each linear is read by at most one."""

    def noise_level(self, model: nn.Module, call: Call) -> Tensor:
        """Normalized noise level of each sample, (B,) float32 in [0, 1]; 1 is pure noise."""

    def branch(self, model: nn.Module, call: Call) -> Tensor:
        """(B,) int64: 1 where a row is unconditional (the null class or prompt), else 0."""

    def carry(self, call: Call, output: Any) -> Call:
        """The next block's call, given this block's call and its output."""


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    """The linear of this name; KeyError when it is missing or something else."""
    module = model.get_submodule(name) if name in dict(model.named_modules()) else None
    if not isinstance(module, nn.Linear):
        raise KeyError(name)
    return module


def batch_of(call: Call) -> int:
    """Batch size of a call: the leading length of its first tensor that has one."""
    for value in (*call.args, *call.kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim >= 1:
            return int(value.shape[0])
    raise ValueError("a denoiser call without any batched tensor")
