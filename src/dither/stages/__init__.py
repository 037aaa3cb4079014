"""Stages: the components of every method, one file each, and the closed table that JSON recipes name them by.

A new method is a new file here, a line in ``STAGES``, and a recipe that names it.
"""

import dataclasses
import reprlib
import typing
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from dither.errors import BadCheckpoint, BadFormat, BadRecipe
from dither.spec import Recipe, fits, from_json, to_json
from dither.stages.adaround import AdaRound
from dither.stages.assign import Assign
from dither.stages.attention import Attention
from dither.stages.base import Job, Phase, Stage, Store, Study, StudySettings
from dither.stages.clip import Clip
from dither.stages.code_program import CodeProgram
from dither.stages.codebooks import Codebooks
from dither.stages.evolve import Evolve
from dither.stages.fisher import FisherScales
from dither.stages.fisher_attention import FisherAttention
from dither.stages.gptq import Gptq
from dither.stages.group_program import GroupProgram
from dither.stages.groups import Groups
from dither.stages.halve import Halve
from dither.stages.hessian_trace import HessianTrace
from dither.stages.log2 import Log2OrUniform
from dither.stages.lowrank import SplitLowRank
from dither.stages.mixed import Mixed
from dither.stages.precompute import Precompute
from dither.stages.program import Program
from dither.stages.ranges import Ranges
from dither.stages.regions import Regions
from dither.stages.rotate import Rotate
from dither.stages.rtn import Rtn
from dither.stages.share import Share, repeated
from dither.stages.smooth import Smooth
from dither.stages.split import Split
from dither.stages.teacher import Teacher
from dither.stages.time_groups import TimeGroups
from dither.stages.timed_smooth import TimedSmooth
from dither.stages.tune import Tune
from dither.stages.widen import Widen

__all__ = [
    "SEARCHES",
    "STAGES",
    "AdaRound",
    "Assign",
    "Attention",
    "Clip",
    "CodeProgram",
    "Codebooks",
    "Evolve",
    "FisherAttention",
    "FisherScales",
    "Gptq",
    "GroupProgram",
    "Groups",
    "Halve",
    "HessianTrace",
    "Job",
    "Log2OrUniform",
    "Mixed",
    "Phase",
    "Precompute",
    "Program",
    "Ranges",
    "Regions",
    "Rotate",
    "Rtn",
    "Share",
    "Smooth",
    "Split",
    "SplitLowRank",
    "Stage",
    "Store",
    "Study",
    "StudySettings",
    "Teacher",
    "TimeGroups",
    "TimedSmooth",
    "Tune",
    "Widen",
    "describe",
    "repeated",
    "stage_from",
    "stages_of",
]

STAGES: dict[str, type[Any]] = {
    c.tag: c
    for c in (
        Teacher, Precompute, Smooth, Rotate,
        Assign, Attention, Regions, Log2OrUniform, Mixed, Program, CodeProgram, Widen, Groups, GroupProgram,
        HessianTrace, Evolve, Halve, Split, TimeGroups, TimedSmooth,
        SplitLowRank, Clip, FisherScales, FisherAttention, AdaRound, Codebooks, Gptq, Rtn, Tune,
        Ranges, Share,
    )
}  # fmt: skip
SEARCHES = frozenset(c.tag for c in (GroupProgram, HessianTrace, Evolve, Halve))
"""Stages that search a group size for each layer, and note what they found as ``granularity.settle`` does."""


def describe(stages: Sequence[Stage]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Stages as the plain data that a Recipe holds: (tag, all fields) each."""
    return tuple((s.tag, {f.name: to_json(getattr(s, f.name)) for f in dataclasses.fields(s)}) for s in stages)  # type: ignore[arg-type]


def stage_from(tag: str, fields: Mapping[str, Any]) -> Stage:
    """The stage of a tag and JSON fields. BadRecipe names the unknown stage, field or value."""
    cls = STAGES.get(tag)
    if cls is None:
        raise BadRecipe(f"unknown stage '{tag}'; known are {', '.join(STAGES)}")
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, item in fields.items():
        if name not in {f.name for f in dataclasses.fields(cls)}:
            known = ", ".join(f.name for f in dataclasses.fields(cls)) or "none"
            raise BadRecipe(f"stage '{tag}' has no field '{name}'; its fields are {known}")
        try:
            values[name] = from_json(item)
        except (BadCheckpoint, BadFormat) as e:
            raise BadRecipe(f"{tag}.{name}: {e}") from None
        if not fits(values[name], hints[name]):
            raise BadRecipe(f"{tag}.{name} cannot be {reprlib.repr(item)}")
    return typing.cast(Stage, cls(**values))


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """A recipe's stages, ready to run. BadRecipe if they stand in an impossible order."""
    stages = tuple(stage_from(tag, fields) for tag, fields in recipe.stages)
    for before, after in pairwise(stages):
        if after.phase < before.phase:
            raise BadRecipe(
                f"recipe '{recipe.name}': stage '{after.tag}' ({after.phase.name}) cannot follow "
                f"'{before.tag}' ({before.phase.name})"
            )
    if len(searching := [stage.tag for stage in stages if stage.tag in SEARCHES]) > 1:
        raise BadRecipe(
            f"recipe '{recipe.name}': '{searching[0]}' and '{searching[1]}' both search group sizes: leave one out"
        )
    tags = {stage.tag for stage in stages}
    if TimedSmooth.tag in tags and (mixing := tags & {Mixed.tag, Program.tag}):
        raise BadRecipe(
            f"recipe '{recipe.name}': '{TimedSmooth.tag}' gives layers banks of weights by time, and '{min(mixing)}' widths "
            "by time: leave one out"
        )
    return stages
