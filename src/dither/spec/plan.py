"""What was done to each linear of a model, and when: specs and the plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

from dither.errors import BadFormat
from dither.spec.formats import Act, Format, Int, Nested

__all__ = ["AttentionSpec", "LinearSpec", "LowRank", "Plan", "Rotation", "Spec", "TableSpec", "Timed", "View", "Views"]

MOST_STEPS = 100_000


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
        time_bias: rows of the table of biases added to the output (0: none; 1; or one for each clock row).
    """

    kind: ClassVar[str] = "linear"
    weight: Format | None = None
    act: Act | None = None
    pre_scale: int = 0
    rotation: Rotation | None = None
    lowrank: LowRank | None = None
    time_bias: int = 0


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


@dataclass(frozen=True)
class View:
    """One way to run a linear whose weight is stored once.

    Args:
        bits: of the weight's codes that are read, from the highest: all of them or fewer.
        act: how its input is quantized; ranges are found anew for each input, as they differ from view to view.
    """

    kind: ClassVar[str] = "view"
    bits: int
    act: Act | None = None

    def __str__(self) -> str:
        return f"{self.bits} bits, {self.act or 'full precision'}"


@dataclass(frozen=True)
class Views:
    """One stored linear that runs at different widths in different time groups, its codes nested.

    Args:
        base: what is stored; its weight is an ``Int``, and its ``act`` that of the widest view.
        views: the ways to run it.
        select: for each row of the plan's clock, the index of the view that runs.
    """

    kind: ClassVar[str] = "views"
    base: LinearSpec
    views: tuple[View, ...]
    select: tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.base.weight, Int):
            raise BadFormat(f"views of a weight stored as {self.base.weight or 'full precision'}: only integers nest")
        if not self.views or any(not 0 <= i < len(self.views) for i in self.select):
            raise BadFormat(f"views spec selects {self.select} among {len(self.views)} views")
        for view in self.views:
            if not 1 <= view.bits <= self.base.weight.bits:
                raise BadFormat(f"a view of {view.bits} bits: {self.base.weight} holds 1 to {self.base.weight.bits}")
        if any(act is not None and act.static for act in (self.base.act, *(v.act for v in self.views))):
            raise BadFormat("views have dynamic activations only: a static table serves one width")

    @property
    def specs(self) -> tuple[LinearSpec, ...]:
        """What each view computes, from the tensors of ``base``."""
        whole = self.base.weight
        assert isinstance(whole, Int)  # see __post_init__
        return tuple(
            replace(self.base, weight=whole if v.bits == whole.bits else Nested(whole, v.bits), act=v.act)
            for v in self.views
        )


Spec: TypeAlias = LinearSpec | Timed | Views
"""What a plan may say of a layer. A new kind is one class here and one builder in ``nn``."""


@dataclass(frozen=True)
class AttentionSpec:
    """One attention whose two products have quantized factors: ``A = softmax(q k^T / sqrt(d))``, ``y = A v``.

    ``None`` is full precision. Ranges of q, k and v run along the channels of all heads, side by side: a group as wide as a
    head gives each head its own. Those of A run along the keys.

    Args:
        q, k, v: what the products read, after norms and rotary embeddings.
        probs: A, the output of the softmax.
    """

    kind: ClassVar[str] = "attention"
    q: Act | None = None
    k: Act | None = None
    v: Act | None = None
    probs: Act | None = None

    def __post_init__(self) -> None:
        if self.probs is not None and self.probs.grid.group > 0:
            raise BadFormat(f"probabilities quantized as {self.probs}: their ranges are per row or per tensor")

    @property
    def parts(self) -> dict[str, Act | None]:
        """By name: q, k, v, probs."""
        return {"q": self.q, "k": self.k, "v": self.v, "probs": self.probs}

    @property
    def static(self) -> dict[str, Act]:
        """Parts that have a table, by name."""
        return {part: act for part, act in self.parts.items() if act is not None and act.static}


@dataclass(frozen=True)
class TableSpec:
    """A timestep embedder as its outputs at all whole timesteps: nothing else goes into it (TFMQ-DM, arXiv 2311.16503).

    Args:
        rows: timesteps 0 to ``rows - 1``.
        same_as: name of the embedder whose table this one reads, where both give the same; empty: it has its own.
    """

    kind: ClassVar[str] = "table"
    rows: int
    same_as: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MOST_STEPS:
            raise BadFormat(f"a table of {self.rows} timesteps: there must be 1 to {MOST_STEPS}")


@dataclass(frozen=True)
class Plan:
    """What was done to a model, stored with its checkpoint.

    Args:
        layers: layer name to spec.
        time_edges: inner edges of the time groups, ascending in (0, 1), in normalized noise level (1 is pure noise).
        branches: 1, or 2 when conditional and unconditional rows have tables of their own.
        attention: attention module's name to spec.
        timesteps: name of a module that embeds the timestep to the spec of its table.
        shared: name of a module in full precision to that of another, which holds the same parameters for both.
    """

    kind: ClassVar[str] = "plan"
    layers: Mapping[str, Spec] = field(default_factory=dict)
    time_edges: tuple[float, ...] = ()
    branches: int = 1
    attention: Mapping[str, AttentionSpec] = field(default_factory=dict)
    timesteps: Mapping[str, TableSpec] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        edges = self.time_edges
        if any(not 0 < e < 1 for e in edges) or list(edges) != sorted(set(edges)):
            raise BadFormat(f"time edges {edges}: must ascend strictly inside (0, 1)")
        if self.branches not in (1, 2):
            raise BadFormat(f"{self.branches} branches: must be 1 or 2 (conditional, unconditional)")
        for name, table in self.timesteps.items():
            if table.same_as and self.timesteps.get(table.same_as) != TableSpec(table.rows):
                raise BadFormat(
                    f"'{name}' reads the timestep table of '{table.same_as}', which has none of its own of {table.rows} rows"
                )
        for name, owner in self.shared.items():
            if owner in self.shared or owner in self.layers or name in self.layers:
                raise BadFormat(f"'{name}' shares the parameters of '{owner}', and one of them has none of its own")

    @property
    def rows(self) -> int:
        """Rows of a full table: time groups times branches."""
        return (len(self.time_edges) + 1) * self.branches
