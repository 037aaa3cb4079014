"""The job that stages work on, and what a stage is.

A stage is a frozen dataclass with a phase and ``run(job)``. Phases run in order, and what a stage may do follows from it:

    TRANSFORM   change weights and add online transforms; the model computes the same function afterwards
    ALLOCATE    say what each layer is to become: ``job.promise``, or ``job.vary`` where that changes over time
    WEIGHT      turn dense weights into stored tensors: ``job.commit``
    ACT         calibrate static activation tables: ``job.activate``

The model stays runnable throughout: a layer is an ``nn.Linear``, then perhaps a full-precision ``QLinear`` with online
transforms, and after ``commit`` the ``QLinear`` that will be saved.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from dither.calibrate import BlockStep, Probe, observe, walk
from dither.errors import BadRecipe
from dither.models.base import Adapter, Call, Layer, linear_at
from dither.nn import Clock, QAttention, QLinear, TimedLinear, ViewedLinear, shared_modules, timestep_tables
from dither.nn import replace as put
from dither.spec import Act, AttentionSpec, Bits, Format, LinearSpec, LowRank, Plan, Rotation, Spec, Timed, Views
from dither.stages import needs
from dither.stages.building import (
    attended,
    besides_weight,
    buffers_of,
    check_attended,
    check_attention,
    check_finished,
    check_fits,
    dense_of,
    filled,
)
from dither.stages.needs import MEASURED, Store, Study, StudySettings, Trajectory, kept_or_made
from dither.stages.nesting import rounded
from dither.stages.phase import Phase

__all__ = ["MEASURED", "Job", "Phase", "Stage", "Store", "Study", "StudySettings"]


@dataclass
class Job:
    """One quantization in progress.

    Args:
        model: changed in place.
        adapter: of its family.
        bits: asked for.
        seed: of everything random.
        record: gives the calibration calls, made once, when a stage first needs them.
        store: for resuming, or None.
        progress: told (what, done, total).
        study: makes what draws and judges pictures.
        sampling: tells how pictures are drawn.
        draw: draws a trajectory of calibration pictures with the model as it is.
        exact: a full-precision copy of the model for later stages to learn from, or None.
        grids: ranges of weights that a stage has found for the one that rounds: scale and zero point by layer.
        tables: static activation tables that a WEIGHT stage has found already, by layer: ``act_scale`` (R, G) and so on;
            ``ranges`` takes them as they are. Of an attention they are ``PART.NAME``, such as ``probs.scale``.
        attention: what each attention is to become.
    """

    model: nn.Module
    adapter: Adapter
    bits: Bits
    seed: int
    record: Callable[[], tuple[Call, ...]]
    store: Store | None = None
    progress: Callable[[str, int, int], None] = needs.silent
    study: Callable[[StudySettings], Study] = needs.no_study
    sampling: Callable[[], needs.Sampling] = needs.no_sampling
    draw: Callable[[Trajectory], None] = needs.no_drawing
    exact: nn.Module | None = None
    specs: dict[str, LinearSpec] = field(default_factory=dict)
    timed: dict[str, Timed] = field(default_factory=dict)
    varied: dict[str, Views | Timed] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    grids: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    tables: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    attention: dict[str, AttentionSpec] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    time_edges: tuple[float, ...] = ()
    branches: int = 1
    clock: Clock = field(default_factory=Clock)
    _calls: tuple[Call, ...] | None = None

    @property
    def calls(self) -> tuple[Call, ...]:
        """The recorded denoiser calls."""
        if self._calls is None:
            self._calls = self.record()
        return self._calls

    @property
    def layers(self) -> dict[str, Layer]:
        """Every linear of the model, by name."""
        return {layer.name: layer for layer in self.adapter.layers(self.model)}

    def set_clock(self, time_edges: tuple[float, ...], branches: int) -> None:
        """Time groups and branches for every table of this job; two stages that disagree are an error."""
        asked, have = (time_edges, branches), (self.time_edges, self.branches)
        if have not in (((), 1), asked):
            raise BadRecipe(f"two stages ask for different time groups: {have} and {asked}")
        self.time_edges, self.branches = asked
        self.clock.edges, self.clock.branches = torch.tensor(time_edges, dtype=torch.float32), branches

    def rows(self, call: Call) -> Tensor:
        """Clock row of each sample of a call, (B,) int64."""
        return self.clock.rows_at(self.adapter.noise_level(self.model, call), self.adapter.branch(self.model, call))

    def observe(
        self,
        what: str,
        probes: Mapping[str, Sequence[Probe]],
        rows: Sequence[Tensor] | None = None,
        block: BlockStep | None = None,
        first: int | None = None,
    ) -> None:
        """One pass over the calibration calls that feeds these probes.

        Args:
            what: for the progress; "" tells none.
            probes: by the layer's name, of the model even where a block is given.
            rows: what probes are told of each call's samples, (B,) int64, instead of their clock rows.
            block: of a walk: run it alone.
            first: only this many calls.
        """
        own = iter(now := [self.rows(c) for c in self.calls[:first]])
        head = "" if block is None else f"{block.name}."
        readers = {name.removeprefix(head): found for name, found in probes.items()}
        module, calls = (self.model, self.calls) if block is None else (block.module, block.calls)
        report = partial(self.progress, what) if what else None
        observe(
            module, calls[:first], readers, now if rows is None else rows, lambda _: self.clock.tell(next(own)), report
        )

    def walk(self) -> Iterator[BlockStep]:
        """The blocks in order, each with the inputs that the blocks before it, as they now are, give it."""
        return walk(self.model, self.adapter, self.calls, [self.rows(c) for c in self.calls], self.clock.tell)

    def dense(self, name: str) -> Tensor:
        """A layer's full-precision weight (N, K) as it now is, transforms included; not a copy."""
        return dense_of(linear_at(self.model, name))

    @property
    def promised(self) -> dict[str, Spec]:
        """What each layer is to become, by name."""
        return {**self.specs, **self.varied, **self.timed}

    def promise(self, name: str, spec: LinearSpec) -> None:
        """Say what a layer is to become; BadFormat names the layer whose width a format does not divide."""
        check_fits(self.model, name, spec)
        self.varied.pop(name, None)  # the last word counts
        self.specs[name] = spec

    def vary(self, name: str, spec: Views | Timed) -> None:
        """Say that what a layer is changes over time; ``spec`` selects by the rows of this job's clock.

        The base of ``Views`` is the layer's spec for all that follows, so that WEIGHT stages commit it as any other. A
        layer of several banks (``Timed``) leaves ``specs``: only ``rtn`` makes banks.
        """
        if len(spec.select) != self.clock.size:
            raise BadRecipe(f"layer '{name}' selects by {len(spec.select)} time groups, not by {self.clock.size}")
        for variant in spec.variants if isinstance(spec, Timed) else (spec.base, *spec.specs):
            check_fits(self.model, name, variant)
        if isinstance(spec, Timed):
            self.specs.pop(name, None)
        else:
            self.specs[name] = spec.base
        self.varied[name] = spec

    def online(
        self,
        name: str,
        pre_scale: Tensor | None = None,
        rotation: tuple[Rotation, Tensor] | None = None,
        weight: Tensor | None = None,
    ) -> None:
        """Add an online transform to a layer; the caller changes its dense weight to match, or gives another.

        Args:
            name: of the layer.
            pre_scale: (R, K) factors that the input is multiplied by; multiplies into one that is there.
            rotation: the spec and its signs (K,) int8.
            weight: (N, K), instead of the dense weight as it is.
        """
        old = linear_at(self.model, name)
        spec = self.specs.get(name, LinearSpec())
        tensors: dict[str, Tensor] = {"weight_dense": self.dense(name) if weight is None else weight}
        tensors |= besides_weight(old)
        if pre_scale is not None:
            if spec.rotation is not None:
                raise BadRecipe(f"layer '{name}' is scaled after it was rotated: put the scaling stage first")
            before = tensors.get("pre_scale")
            tensors["pre_scale"] = pre_scale.float() if before is None else before * pre_scale.float()
            spec = replace(spec, pre_scale=tensors["pre_scale"].shape[0])
        if rotation is not None:
            if spec.rotation is not None:
                raise BadRecipe(f"layer '{name}' is rotated twice: one rotating stage must leave it out")
            spec, tensors["rotation_signs"] = replace(spec, rotation=rotation[0]), rotation[1]
        self.specs[name] = spec
        self._install(name, replace(spec, weight=None, act=None, lowrank=None), tensors)

    def split(self, name: str, lowrank: LowRank, tensors: Mapping[str, Tensor], rest: Tensor) -> None:
        """Give a layer a low-rank branch; its dense weight becomes what the branch leaves.

        Args:
            name: of the layer, which has a spec.
            lowrank: the branch's spec.
            tensors: ``lowrank_a_...`` and ``lowrank_b_...``, as stored.
            rest: (N, K).
        """
        spec = replace(self.specs[name], lowrank=lowrank)
        check_fits(self.model, name, spec)
        self.specs[name] = spec
        kept = {**besides_weight(linear_at(self.model, name)), **tensors, "weight_dense": rest}
        self._install(name, replace(spec, weight=None, act=None), kept)

    def imitation(self, name: str, weight: Format | None, act: Act | None) -> QLinear:
        """A linear like this one, transforms included, with its weight rounded to a format, its input quantized.

        It belongs to nothing: the model stays as it is. None leaves a side in full precision.
        """
        old = linear_at(self.model, name)
        dense = self.dense(name)
        if weight is not None:
            dense = rounded(dense.float(), weight).to(dense.dtype)
        have = self.specs.get(name, LinearSpec())
        spec = LinearSpec(None, act, have.pre_scale, have.rotation, have.lowrank)
        return filled(name, old, spec, {"weight_dense": dense, **besides_weight(old)}, self.clock, old.bias)

    def note(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what a stage found out about a layer, as small JSON; it is stored with the recipe and shown in results."""
        self.notes.setdefault(name, {}).update(facts)

    def commit(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Finish a layer's weight.

        Args:
            name: of the layer, which has a spec.
            make: gives the tensors of the weight format, and ``bias`` (N,) where the layer gets another; not called
                when an interrupted job already made them.
        """
        spec, kept = self.specs[name], dict(kept_or_made(self.store, name, make))
        if (bias := kept.pop("bias", None)) is not None:
            old: nn.Parameter = linear_at(self.model, name).bias
            old.data = bias.to(old.device, old.dtype)
        tensors = buffers_of(kept)
        self.done.add(name)
        if isinstance(views := self.varied.get(name), Views):
            self._install_views(name, views, tensors)
            return
        act = None if spec.act is not None and spec.act.static else spec.act  # static tables come in the ACT phase
        self._install(name, replace(spec, act=act), {**besides_weight(linear_at(self.model, name)), **tensors})

    def commit_timed(self, name: str, spec: Timed, make: Callable[[], Mapping[str, Tensor]]) -> None:
        """Finish a layer that has variants; it leaves ``specs``, so that no later stage takes it for a plain one.

        Args:
            name: of the layer.
            spec: of its variants, which select by the rows of this job's clock.
            make: gives the tensors of every variant as ``I.NAME``: those that ``commit`` takes, and ``pre_scale`` and
                ``rotation_signs`` where a variant has its own.
        """
        if self.varied.get(name, spec) != spec:
            raise BadRecipe(
                f"layer '{name}' changes its width over time already, so it cannot have other banks by time as well: "
                "leave out one of the two stages"
            )
        old = linear_at(self.model, name)
        kept = kept_or_made(self.store, name, make)
        variants = []
        for i, variant in enumerate(spec.variants):
            mine = {k.partition(".")[2]: v for k, v in kept.items() if k.partition(".")[0] == str(i)}
            # clones, as files of weights refuse tensors of two names
            shared = {k: v.clone() for k, v in besides_weight(old).items()}
            variants.append(filled(name, old, variant, {**shared, **buffers_of(mine)}, self.clock, None))
        put(self.model, name, TimedLinear(variants, spec.select, old.bias, self.clock).train(old.training))
        self.specs.pop(name, None)
        self.timed[name] = spec
        self.done.add(name)

    def measured(self, name: str, make: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """Numbers that are costly to measure, from the store, or measured now and stored under ``MEASURED + name``."""

        def tensors() -> Mapping[str, Tensor]:
            return {key: torch.tensor([value], dtype=torch.float64) for key, value in make().items()}

        return {key: float(value) for key, value in self.kept(name, tensors).items()}

    def kept(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The same of tensors, which are not a layer's final ones."""
        return kept_or_made(self.store, MEASURED + name, make)

    def lacks(self, names: Iterable[str]) -> bool:
        """Whether one of these layers was not finished by an interrupted run before this one."""
        return self.store is None or any(name not in self.store for name in names)

    def activate(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Give a layer its static activation tables (``act_scale``, ``act_zero``) and switch its activations on."""
        old = linear_at(self.model, name)
        assert isinstance(old, QLinear)
        kept = {k: v for k, v in old.named_buffers() if not k.startswith("act_")}
        self._install(name, self.specs[name], {**kept, **tensors})

    def _install(self, name: str, spec: LinearSpec, tensors: Mapping[str, Tensor]) -> None:
        old = linear_at(self.model, name)
        put(self.model, name, filled(name, old, spec, tensors, self.clock, old.bias).train(old.training))

    def _install_views(self, name: str, views: Views, tensors: Mapping[str, Tensor]) -> None:
        old = linear_at(self.model, name)
        base = filled(name, old, views.base, {**besides_weight(old), **tensors}, self.clock, None)
        put(self.model, name, ViewedLinear(base, views, old.bias, self.clock).train(old.training))

    def attend(self, name: str, spec: AttentionSpec) -> None:
        """Say what an attention is to become; BadFormat names it if a group does not divide its channels."""
        check_attention(self.model, name, spec)
        self.attention[name] = spec

    def rounded_attention(self, name: str, spec: AttentionSpec, tables: Mapping[str, Tensor]) -> QAttention:
        """Let an attention compute its products under a spec from now on; under an empty one, only to be looked at.

        ``tables`` are ``PART.NAME`` (R, G) of what is static.
        """
        return attended(self.model.get_submodule(name), spec, tables, self.clock)

    def finish(self) -> Plan:
        """The plan of what was done; raises BadRecipe if a layer was promised something that no stage did."""
        check_finished(self.model, self.specs, self.varied)
        check_attended(self.model, self.attention)
        own, tables, shared = self.attention, timestep_tables(self.model), shared_modules(self.model)
        return Plan(self.promised, self.time_edges, self.branches, own, tables, shared)


class Stage(Protocol):
    """One component of a method: a frozen dataclass; its fields are its switches."""

    tag: ClassVar[str]
    phase: ClassVar[Phase]
    paper: ClassVar[str]

    def run(self, job: Job) -> None:
        """Do the work on the job."""
