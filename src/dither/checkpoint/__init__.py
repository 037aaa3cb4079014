"""Checkpoints of quantized models: safetensors with packed codes, and the plan in ``config.json``.

    folder/
      config.json                    header.py: {"quantization_config": {...}}
      model.safetensors              every tensor of ``model.state_dict()``; digests in the metadata
      model.safetensors.index.json   in place of the above when sharded

``save`` and ``load_into`` serve any torch module. Models of diffusers go through ``dither.integrations.diffusers``, which
writes the same tensors and the same ``quantization_config`` in diffusers' own folders, and checks them with the same code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dither.checkpoint.contents import check_tensors, check_values, digest, expected_tensors, metadata_of
from dither.checkpoint.files import (
    CONFIG,
    Reader,
    atomic_folder,
    opened,
    read_json,
    weight_files,
    write_json,
    write_shards,
)
from dither.checkpoint.header import METHOD, Header, attach, config_of, header_from, header_of, plan_digest
from dither.errors import BadCheckpoint, DitherError
from dither.nn import (
    QAttention,
    QLinear,
    Read,
    TimedLinear,
    ViewedLinear,
    attention_tensors,
    install,
    shared_modules,
    timestep_tables,
)
from dither.spec import Plan, Spec, Timed

__all__ = [
    "METHOD",
    "Header",
    "atomic_folder",
    "attach",
    "check_files",
    "check_installed",
    "config_of",
    "digest",
    "header_from",
    "header_of",
    "load_into",
    "metadata_of",
    "opened",
    "plan_digest",
    "read_header",
    "save",
    "verify",
]


def save(model: nn.Module, directory: str | Path, header: Header, max_shard_size: int | str = "10GB") -> None:
    """Write a quantized model of any class into a new folder; it appears whole or not at all.

    Args:
        model: whose layers are quantized as the header's plan says.
        directory: must not exist or be empty.
        header: what to write into ``config.json``.
        max_shard_size: bytes, or text such as "5GB", of one file.

    Raises:
        DitherError: the folder is not empty, the disk is full, or the model is not what the plan says.
    """
    check_installed(model, header.plan)
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise DitherError(f"the state '{name}' of {type(model).__name__} is not a tensor and cannot be saved")
        tensor = value.detach().cpu().contiguous()
        # safetensors holds no aliases: tied tensors are written once for each name
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in taken else tensor
        taken.add(storage)
    with atomic_folder(Path(directory)) as folder:
        write_json(folder / CONFIG, {"quantization_config": config_of(header)})
        write_shards(tensors, folder, metadata_of(tensors, header.plan), max_shard_size)


def load_into(model: nn.Module, directory: str | Path, read: Read | None = None) -> None:
    """Load what ``save`` wrote into a freshly built model of the same class, bit for bit.

    Everything is checked before the model is touched. Packed layers are never unpacked, and what is in full precision
    keeps the dtype it was saved in; a model built on the meta device therefore never takes its full size.

    Args:
        model: dense, as its class builds it; tensors go to the device of those they replace, from meta to the CPU.
        directory: the folder.
        read: how to read time and branch of a call; needed when the plan has time groups or branches.

    Raises:
        BadCheckpoint: the folder is damaged, tampered with, or belongs to another model.
    """
    header = read_header(directory)
    plan = header.plan
    if plan.rows > 1 and read is None:
        raise DitherError("this checkpoint has time groups or branches: give read=, which tells the time of a call")
    device_of = {name: value.device for name, value in model.state_dict().items()}
    dense = {name: linear.weight.device for name, linear in _linears(model).items() if name in plan.layers}
    modules = dict(model.named_modules())
    others = (name for name in (*plan.attention, *plan.timesteps) if name in modules)
    dense |= {name: p.device for name in others for p in list(modules[name].parameters())[:1]}
    with opened(weight_files(Path(directory))) as reader:
        check_files(reader, model, plan, required=True)
        tensors = {}
        for name in reader.place:
            device = device_of.get(name) or next(d for layer, d in dense.items() if name.startswith(f"{layer}."))
            tensors[name] = reader(name).to("cpu" if device.type == "meta" else device)
    install(model, plan, read or _timeless, device="meta")
    model.load_state_dict(tensors, strict=True, assign=True)
    if empty := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise DitherError(
            f"buffer '{empty[0]}' is in no checkpoint (persistent=False): build the model off the meta device"
        )
    attach(model, header)


def verify(directory: str | Path) -> list[Path]:
    """Check headers and digests of a checkpoint folder, or of every component of a pipeline folder, without a model.

    Returns:
        The folders that hold a checkpoint of dither.

    Raises:
        BadCheckpoint: naming the file or tensor at fault; or there is no checkpoint of dither.
    """
    folder = Path(directory)
    children = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [path for path in (folder, *children) if _is_ours(path)]
    if not found:
        raise BadCheckpoint(f"'{folder}' holds no checkpoint of dither")
    for path in found:
        with opened(weight_files(path)) as reader:
            reader.verify(plan_digest(read_header(path).plan), required=False)
    return found


def read_header(directory: str | Path) -> Header:
    """The header in a folder's ``config.json``. Raises BadCheckpoint."""
    path = Path(directory) / CONFIG
    config = read_json(path)
    if not isinstance(config, dict) or "quantization_config" not in config:
        raise BadCheckpoint(f"'{path}' has no 'quantization_config'")
    try:
        return header_from(config["quantization_config"])
    except BadCheckpoint as e:
        raise BadCheckpoint(f"'{path}': {e}") from None


def check_files(reader: Reader, model: nn.Module, plan: Plan, required: bool, ignore: Sequence[str] = ()) -> None:
    """Everything that can be known of a checkpoint before loading it into this model: BadCheckpoint, or all is well.

    Args:
        reader: of the files.
        model: a skeleton, dense.
        plan: of the checkpoint.
        required: whether digests must be there.
        ignore: regular expressions of names that the model's class allows to be superfluous.
    """
    check_tensors(reader, expected_tensors(model, plan), ignore)
    reader.verify(plan_digest(plan), required)
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in _linears(model).items()}
    check_values(plan, shapes, reader)


def check_installed(model: nn.Module, plan: Plan) -> None:
    """The model's quantized layers are those of the plan. DitherError names the first that is not."""
    modules = dict(model.named_modules())
    for name, spec in plan.layers.items():
        module = modules.get(name)
        if module is None or _spec_of(module) != spec:
            kind = "missing" if module is None else f"a {type(module).__name__}"
            raise DitherError(f"layer '{name}' is {kind}, not quantized as the plan says (was an adapter attached?)")
    for name, attention in plan.attention.items():
        part = modules.get(attention_tensors(name)[:-1])
        if not isinstance(part, QAttention) or part.spec != attention:
            raise DitherError(f"attention '{name}' is not quantized as the plan says")
    tables = timestep_tables(model)
    if odd := sorted(name for name in {**tables, **plan.timesteps} if tables.get(name) != plan.timesteps.get(name)):
        raise DitherError(f"the timestep embedder '{odd[0]}' is not what the plan says")
    if odd := sorted(name for name, _ in shared_modules(model).items() ^ plan.shared.items()):
        raise DitherError(f"the plan and the model do not agree on whose parameters '{odd[0]}' reads")
    several = [f"{name}." for name, m in modules.items() if isinstance(m, TimedLinear | ViewedLinear)]
    for name, module in modules.items():
        if _spec_of(module) is not None and name not in plan.layers and not name.startswith(tuple(several)):
            raise DitherError(f"layer '{name}' is quantized, but the plan does not name it")


def _spec_of(module: nn.Module) -> Spec | None:
    if isinstance(module, TimedLinear):
        return Timed(tuple(v.spec for v in module.variants if isinstance(v, QLinear)), module.select)
    return module.spec if isinstance(module, QLinear | ViewedLinear) else None


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _is_ours(folder: Path) -> bool:
    if not (folder / CONFIG).is_file():
        return False
    config = read_json(folder / CONFIG)
    method = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(method, dict) and method.get("quant_method") == METHOD


def _timeless(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    raise AssertionError("a clock of one row never asks for the time")
