"""The header of a checkpoint: what was done (the plan), how it was found (the recipe), and who wrote it.

It lies in ``config.json`` as plain JSON. Layers of one spec share one entry, so that it stays small for any model. Quantized
attentions are named beside them (``"attention": {"blocks.0.attn": 1, ...}``), and timestep embedders that became tables
(``"timesteps": {"blocks.0.emb": 2, ...}``), and modules that share the parameters of others
(``"shared": {"blocks.1.emb.table": "blocks.0.emb.table", ...}``), where there are any:

    {"quant_method": "dither", "version": 1, "dither": "0.1.0", "recipe": {...} | null,
     "plan": {"specs": [{"kind": "linear", ...}, ...], "layers": {"blocks.0.fc": 0, ...}, "time_edges": [], "branches": 1}}
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dither.errors import BadCheckpoint, BadFormat, DitherError
from dither.spec import AttentionSpec, LinearSpec, Plan, Spec, TableSpec, Timed, Views, from_json, to_json

__all__ = ["FORMAT", "METHOD", "Header", "attach", "config_of", "header_from", "header_of", "plan_digest"]

METHOD = "dither"
"""The ``quant_method`` of a checkpoint."""
FORMAT = 1
"""Version of the layout on disk. Other versions are refused, never guessed at."""
_FIELDS = {"quant_method", "version", "dither", "plan", "recipe"}
_PLAN_FIELDS = {"specs", "layers", "time_edges", "branches"}
_SHARED = "shared"
_NAMED: dict[str, tuple[type[Any], ...]] = {
    "layers": (LinearSpec, Timed, Views),
    "attention": (AttentionSpec,),
    "timesteps": (TableSpec,),
}
"""Fields of a plan that map names to specs, and the kinds that these may be; all but ``layers`` are left out where empty."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself.

    Args:
        plan: all that loading needs.
        recipe: how the plan was found, as JSON (``spec.to_json`` of a ``Recipe``); provenance, never interpreted.
        version: of the dither that wrote it.
    """

    plan: Plan
    recipe: Mapping[str, Any] | None = None
    version: str = ""


def attach(model: nn.Module, header: Header) -> None:
    """Let the model carry its header, as ``model.dither_header``."""
    model.dither_header = header  # type: ignore[assignment]  # nn.Module declares tensors and modules only


def header_of(model: nn.Module) -> Header:
    """The header of a quantized model. Raises DitherError when it has none."""
    header = vars(model).get("dither_header")
    if not isinstance(header, Header):
        raise DitherError(f"this {type(model).__name__} carries no dither header: it was not quantized by dither")
    return header


def config_of(header: Header) -> dict[str, Any]:
    """The header as JSON."""
    specs: list[Spec | AttentionSpec | TableSpec] = []
    named: dict[str, dict[str, int]] = {}
    for field in _NAMED:
        found: Mapping[str, Spec | AttentionSpec | TableSpec] = getattr(header.plan, field)
        named[field] = {}
        for name in sorted(found):  # JSON objects have no order: one plan, one text
            spec = found[name]
            if spec not in specs:
                specs.append(spec)
            named[field][name] = specs.index(spec)
    plan = {
        "specs": to_json(specs),
        **{field: names for field, names in named.items() if names or field in _PLAN_FIELDS},
        **({_SHARED: dict(sorted(header.plan.shared.items()))} if header.plan.shared else {}),
        "time_edges": list(header.plan.time_edges),
        "branches": header.plan.branches,
    }
    recipe = None if header.recipe is None else to_json(header.recipe)
    return {"quant_method": METHOD, "version": FORMAT, "dither": header.version, "plan": plan, "recipe": recipe}


def header_from(config: Any) -> Header:
    """The header that ``config_of`` wrote. Raises BadCheckpoint, naming the field, on anything else."""
    _keys(config, _FIELDS, "quantization_config")
    if config["quant_method"] != METHOD:
        raise BadCheckpoint(f"quant_method is {config['quant_method']!r}, not '{METHOD}'")
    if type(config["version"]) is not int or config["version"] != FORMAT:
        raise BadCheckpoint(
            f"checkpoint format version {config['version']!r} is unknown here; this dither reads {FORMAT}"
        )
    if not isinstance(config["dither"], str):
        raise BadCheckpoint(f"field 'dither' is {config['dither']!r}: it must be the version that wrote the checkpoint")
    if not isinstance(config["recipe"], Mapping | None):
        raise BadCheckpoint("field 'recipe' is neither an object nor null")
    try:
        plan = _plan_from(config["plan"])
    except BadFormat as e:
        raise BadCheckpoint(f"the plan is invalid: {e}") from None
    except RecursionError:
        raise BadCheckpoint("the plan is nested too deeply") from None
    return Header(plan, config["recipe"], config["dither"])


def plan_digest(plan: Plan) -> str:
    """SHA-256 of the plan. Stored beside the weights, it ties a config.json to them."""
    text = json.dumps(config_of(Header(plan))["plan"], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plan_from(data: Any) -> Plan:
    maps = (*_NAMED, _SHARED)
    if isinstance(data, Mapping):
        data = {**{field: {} for field in maps if field not in _PLAN_FIELDS}, **data}
    _keys(data, _PLAN_FIELDS | set(maps), "plan")
    if not isinstance(data["specs"], list) or not all(isinstance(data[field], Mapping) for field in maps):
        raise BadCheckpoint(f"the plan needs a list 'specs', and objects {', '.join(map(repr, maps))}")
    specs = from_json(data["specs"])
    for i, spec in enumerate(specs):
        if not any(isinstance(spec, kinds) for kinds in _NAMED.values()):
            raise BadCheckpoint(
                f"spec {i} of the plan describes neither a linear nor an attention, nor a table of timesteps"
            )
    named = {field: dict(_named(specs, field, data[field])) for field in _NAMED}
    whole = from_json({"kind": "plan", **{key: data[key] for key in ("time_edges", "branches", _SHARED)}})
    edges = tuple(float(e) for e in whole.time_edges)
    return Plan(time_edges=edges, branches=whole.branches, shared=whole.shared, **named)


def _named(specs: Sequence[Any], field: str, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each name with the spec that its index means, which must be of the right kind."""
    for name, index in names.items():
        if type(index) is not int or not 0 <= index < len(specs):
            raise BadCheckpoint(f"the plan gives layer '{name}' the spec {index!r}; there are {len(specs)}")
        if not isinstance(specs[index], _NAMED[field]):
            kinds = " or ".join(f"'{kind.kind}'" for kind in _NAMED[field])
            raise BadCheckpoint(
                f"the plan gives '{name}' spec {index}, which is not of kind {kinds} as '{field}' needs"
            )
        yield name, specs[index]


def _keys(data: Any, wanted: set[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise BadCheckpoint(f"'{what}' must be a JSON object, not {type(data).__name__}")
    if odd := set(data) ^ wanted:
        name = sorted(str(k) for k in odd)[0]
        raise BadCheckpoint(f"'{what}' {'lacks the' if name in wanted else 'has an unknown'} field '{name}'")
