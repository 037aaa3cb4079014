"""What a quantized model is, as plain data: formats, layer specs, the plan, the recipe that found it. No torch here.

A *format* says how numbers are stored (``Int``, ``Codebook``). A ``LinearSpec`` says what one linear computes:

    y = decode(weight) . act( rotate( pre_scale * x ) ) + bias            # x (..., K), y (..., N)

A ``Plan`` maps layer names to specs and is stored with the checkpoint: it is all that loading needs. A ``Recipe`` is
how the plan was found: provenance only. Everything here is frozen, compares by value, and turns into JSON and back
exactly, through closed tags (``{"kind": "int", ...}``): no import path, no evaluation.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from dither.errors import BadCheckpoint, BadFormat, BadRecipe

__all__ = [
    "PER_ROW",
    "PER_TENSOR",
    "Act",
    "Bits",
    "Codebook",
    "Format",
    "Int",
    "LinearSpec",
    "LowRank",
    "Plan",
    "Recipe",
    "Rotation",
    "Spec",
    "Timed",
    "fits",
    "from_json",
    "to_json",
]

PER_ROW = 0
"""Group value: one scale for each row (an output channel of a weight, a token of an activation)."""
PER_TENSOR = -1
"""Group value: one scale for the whole tensor."""


@dataclass(frozen=True)
class Int:
    """Uniform integers of 1 to 8 bits.

    Symmetric: ``w = s q``, ``q`` in ``[-2^(b-1), 2^(b-1) - 1]`` (``b = 1``: ``q`` in ``{-1, +1}``), two's complement.
    Asymmetric: ``w = s (q - z)`` with ``q, z`` in ``[0, 2^b - 1]``; the range always contains 0, so 0 is exact.

    Args:
        bits: width of a code.
        symmetric: no zero point.
        group: how many neighbours along the input channels share a scale; ``PER_ROW`` or ``PER_TENSOR``.
    """

    kind: ClassVar[str] = "int"
    bits: int
    symmetric: bool = True
    group: int = PER_ROW

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise BadFormat(f"int format of {self.bits} bits: the width must be 1 to 8")
        if self.group < PER_TENSOR:
            raise BadFormat(
                f"group size {self.group}: must be positive, {PER_ROW} (per row) or {PER_TENSOR} (per tensor)"
            )

    def __str__(self) -> str:
        grain = {PER_ROW: "per row", PER_TENSOR: "per tensor"}.get(self.group, f"group {self.group}")
        return f"int{self.bits} {'sym' if self.symmetric else 'asym'} {grain}"


@dataclass(frozen=True)
class Codebook:
    """Vector quantization: ``dim`` neighbouring input channels are one of ``size`` codewords (arXiv 2408.17131).

    Args:
        dim: length of a sub-vector; must divide the input width.
        size: codewords of the layer's codebook; a code takes ``ceil(log2 size)`` bits.
        row_scale: each output row also has a scale of its own.
    """

    kind: ClassVar[str] = "codebook"
    dim: int
    size: int
    row_scale: bool = False

    def __post_init__(self) -> None:
        if self.dim < 1 or not 2 <= self.size <= 65536:
            raise BadFormat(
                f"codebook of {self.size} words of length {self.dim}: need length >= 1 and 2 to 65536 words"
            )

    @property
    def bits(self) -> int:
        """Width of one code."""
        return (self.size - 1).bit_length()

    def __str__(self) -> str:
        return f"codebook {self.size}x{self.dim}{' row-scaled' if self.row_scale else ''}"


Format: TypeAlias = Int | Codebook
"""How a weight or an activation is stored. A new format is one class here and one file in ``numerics``."""


@dataclass(frozen=True)
class Act:
    """How a linear's input is quantized. ``grid.group`` runs along the channels: per token, token group or tensor.

    Args:
        grid: the format of the codes.
        static: ranges come from calibration and are stored; otherwise they are found anew for each input.
        rows: how many rows the stored table has: 1, or one for each time group (and CFG branch) of the plan's clock.
    """

    kind: ClassVar[str] = "act"
    grid: Int
    static: bool = False
    rows: int = 1

    def __str__(self) -> str:
        grain = {PER_ROW: "per token", PER_TENSOR: "per tensor"}.get(
            self.grid.group, f"per token, group {self.grid.group}"
        )
        if self.static:
            grain = {PER_ROW: "per tensor", PER_TENSOR: "per tensor"}.get(self.grid.group, f"group {self.grid.group}")
        when = ("static" if self.rows == 1 else f"static x{self.rows}") if self.static else "dynamic"
        return f"int{self.grid.bits} {'sym' if self.grid.symmetric else 'asym'} {grain} {when}"


@dataclass(frozen=True)
class Rotation:
    """A randomized Hadamard rotation of the input channels, ``x -> x diag(signs) H / sqrt(block)``, blockwise.

    Args:
        block: width of a block, ``K * 2^k`` with a known Hadamard matrix of order K; must divide the input width.
        seed: of the signs, which are stored as well.
    """

    kind: ClassVar[str] = "rotation"
    block: int
    seed: int = 0


@dataclass(frozen=True)
class LowRank:
    """A branch ``x A^T B^T`` beside the weight, on the scaled and rotated, unquantized input (arXiv 2409.07756).

    Args:
        rank: inner width R of A (R, K) and B (N, R).
        weight: format of both factors; ``None`` keeps them in full precision.
    """

    kind: ClassVar[str] = "lowrank"
    rank: int
    weight: Format | None = None


@dataclass(frozen=True)
class LinearSpec:
    """One quantized linear. ``None`` means full precision (weight, act) or absent (rotation).

    Args:
        weight: format of the weight (N, K).
        act: format of the input (..., K).
        pre_scale: rows of the table of online channel scales (0: none; 1; or one for each clock row).
        rotation: rotation of the input after the scale; the stored weight is already rotated to match.
        lowrank: a low-rank branch added to the output.
    """

    kind: ClassVar[str] = "linear"
    weight: Format | None = None
    act: Act | None = None
    pre_scale: int = 0
    rotation: Rotation | None = None
    lowrank: LowRank | None = None


@dataclass(frozen=True)
class Timed:
    """Variants of one linear, of which one runs in each time group: precision that changes with the noise level.

    Args:
        variants: the specs.
        select: for each row of the plan's clock, the index of the variant that runs.
    """

    kind: ClassVar[str] = "timed"
    variants: tuple[LinearSpec, ...]
    select: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.variants or any(not 0 <= i < len(self.variants) for i in self.select):
            raise BadFormat(f"timed spec selects {self.select} among {len(self.variants)} variants")


Spec: TypeAlias = LinearSpec | Timed
"""What a plan may say of a layer. A new kind is one class here and one builder in ``nn``."""


@dataclass(frozen=True)
class Plan:
    """What was done to a model, stored with its checkpoint.

    Args:
        layers: layer name to spec.
        time_edges: inner edges of the time groups, ascending in (0, 1), in normalized noise level (1 is pure noise).
        branches: 1, or 2 when conditional and unconditional rows have tables of their own.
    """

    kind: ClassVar[str] = "plan"
    layers: Mapping[str, Spec] = field(default_factory=dict)
    time_edges: tuple[float, ...] = ()
    branches: int = 1

    def __post_init__(self) -> None:
        edges = self.time_edges
        if any(not 0 < e < 1 for e in edges) or list(edges) != sorted(set(edges)):
            raise BadFormat(f"time edges {edges}: must ascend strictly inside (0, 1)")
        if self.branches not in (1, 2):
            raise BadFormat(f"{self.branches} branches: must be 1 or 2 (conditional, unconditional)")

    @property
    def rows(self) -> int:
        """Rows of a full table: time groups times branches."""
        return (len(self.time_edges) + 1) * self.branches


@dataclass(frozen=True)
class Bits:
    """Widths asked for on the command line, ``w4a8`` or ``w4`` (activations stay full precision)."""

    weight: int
    act: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """Read ``w<bits>`` or ``w<bits>a<bits>``; a16 means full-precision activations. Raises BadRecipe."""
        found = re.fullmatch(r"w([1-8])(?:a([1-8]|16))?", text.lower())
        if found is None:
            raise BadRecipe(f"bits '{text[:20]}': write w<bits> or w<bits>a<bits>, each 1 to 8 (a16: full precision)")
        weight, act = found.groups()
        return cls(int(weight), None if act in (None, "16") else int(act))

    def __str__(self) -> str:
        return f"w{self.weight}" + (f"a{self.act}" if self.act is not None else "")


@dataclass(frozen=True)
class Recipe:
    """How a plan is found: an ordered tuple of stages, plain data here; ``dither.stages`` gives them meaning.

    Args:
        name: of the method, as on the command line.
        paper: arXiv id, or empty.
        bits: widths asked for.
        stages: (tag, fields) of each stage, in the order they run.
    """

    name: str
    paper: str
    bits: Bits
    stages: tuple[tuple[str, Mapping[str, Any]], ...]


_TAGGED: dict[str, type[Any]] = {c.kind: c for c in (Int, Codebook, Act, Rotation, LowRank, LinearSpec, Timed, Plan)}


def to_json(value: Any) -> Any:
    """Plain JSON of a spec: dicts with a ``kind``, lists, numbers. Fields that equal their default are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {"kind": value.kind} if hasattr(value, "kind") else {}
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if f.default is dataclasses.MISSING or item != f.default:
                out[f.name] = to_json(item)
        return out
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(data: Any) -> Any:
    """The spec that ``to_json`` wrote. Unknown kinds, fields or types raise BadCheckpoint; nothing is evaluated."""
    if isinstance(data, list):
        return tuple(from_json(v) for v in data)
    if not isinstance(data, Mapping):
        return data
    if "kind" not in data:
        return {k: from_json(v) for k, v in data.items()}
    cls = _TAGGED.get(data["kind"]) if isinstance(data["kind"], str) else None
    if cls is None:
        raise BadCheckpoint(f"plan names an unknown kind {data['kind']!r}; known are {', '.join(_TAGGED)}")
    names = {f.name for f in dataclasses.fields(cls)}
    if unknown := set(data) - names - {"kind"}:
        raise BadCheckpoint(f"plan gives {cls.kind} an unknown field {sorted(unknown)[0]!r}")
    fields = {k: from_json(v) for k, v in data.items() if k != "kind"}
    hints = typing.get_type_hints(cls)
    for name, item in fields.items():
        if not fits(item, hints[name]):
            raise BadCheckpoint(f"plan gives {cls.kind}.{name} the value {item!r} of the wrong type")
    try:
        return cls(**fields)
    except TypeError as e:
        raise BadCheckpoint(f"plan gives an incomplete {cls.kind}: {e}") from None


def fits(item: Any, hint: Any) -> bool:
    """Whether ``item`` is of the type that the annotation names (unions, tuples, mappings, classes)."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(item, a) for a in args)
    if origin is tuple:
        return isinstance(item, tuple) and all(fits(v, args[0]) for v in item)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(item, Mapping) and all(fits(v, args[1]) for v in item.values())
    if hint is float:
        return isinstance(item, float | int) and not isinstance(item, bool)
    if hint is int:
        return isinstance(item, int) and not isinstance(item, bool)
    return isinstance(item, hint) if isinstance(hint, type) else hint is Any
