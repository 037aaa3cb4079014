"""The header of a checkpoint: what was done (the plan), how it was found (the recipe), and who wrote it.

It lies in ``config.json`` as plain JSON. Layers of one spec share one entry, so that it stays small for any model;
attentions, where any is quantized, are named beside them (``"attention": {"blocks.0.attn": 1, ...}``):

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
from dither.spec import AttentionSpec, LinearSpec, Plan, Spec, Timed, Views, from_json, to_json

__all__ = ["FORMAT", "METHOD", "Header", "attach", "config_of", "header_from", "header_of", "plan_digest"]

METHOD = "dither"
"""The ``quant_method`` of a checkpoint."""
FORMAT = 1
"""Version of the layout on disk. Other versions are refused, never guessed at."""
_FIELDS = {"quant_method", "version", "dither", "plan", "recipe"}
_PLAN_FIELDS = {"specs", "layers", "time_edges", "branches"}


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
    specs: list[Spec | AttentionSpec] = []
    named: list[dict[str, int]] = []
    for found in (header.plan.layers, header.plan.attention):
        named.append({})
        for name in sorted(found):  # JSON objects have no order: one plan, one text
            spec = found[name]
            if spec not in specs:
                specs.append(spec)
            named[-1][name] = specs.index(spec)
    plan = {
        "specs": to_json(specs),
        "layers": named[0],
        **({"attention": named[1]} if named[1] else {}),
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
    if isinstance(data, Mapping) and "attention" in data:
        attention = data["attention"]
        data = {key: value for key, value in data.items() if key != "attention"}
    else:
        attention = {}
    _keys(data, _PLAN_FIELDS, "plan")
    if not isinstance(data["specs"], list) or not all(isinstance(d, Mapping) for d in (data["layers"], attention)):
        raise BadCheckpoint("the plan needs a list 'specs', an object 'layers' and none or an object 'attention'")
    specs = from_json(data["specs"])
    for i, spec in enumerate(specs):
        if not isinstance(spec, LinearSpec | Timed | Views | AttentionSpec):
            raise BadCheckpoint(f"spec {i} of the plan describes neither a linear nor an attention")
    layers: dict[str, Spec] = dict(_named(specs, data["layers"], False))
    products: dict[str, AttentionSpec] = dict(_named(specs, attention, True))
    whole = from_json({"kind": "plan", "time_edges": data["time_edges"], "branches": data["branches"]})
    return Plan(layers, tuple(float(e) for e in whole.time_edges), whole.branches, products)


def _named(specs: Sequence[Any], names: Mapping[str, Any], attention: bool) -> Iterator[tuple[str, Any]]:
    """Each name with the spec that its index means, which must be of the right kind."""
    for name, index in names.items():
        if type(index) is not int or not 0 <= index < len(specs):
            raise BadCheckpoint(f"the plan gives layer '{name}' the spec {index!r}; there are {len(specs)}")
        if isinstance(specs[index], AttentionSpec) is not attention:
            raise BadCheckpoint(
                f"the plan gives '{name}' spec {index}, which is not of {'an attention' if attention else 'a linear'}"
            )
        yield name, specs[index]


def _keys(data: Any, wanted: set[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise BadCheckpoint(f"'{what}' must be a JSON object, not {type(data).__name__}")
    if odd := set(data) ^ wanted:
        name = sorted(str(k) for k in odd)[0]
        raise BadCheckpoint(f"'{what}' {'lacks the' if name in wanted else 'has an unknown'} field '{name}'")
