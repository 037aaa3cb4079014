"""What is compared: opened models, a digest that names each one's pictures, and whether two may be compared at all.

The digest covers everything that decides a picture besides the request: every tensor of every network of the pipeline as it
is in memory, the scheduler's settings, and the plan. So it holds for models that were changed after loading too, such as
``zoo:fashion-hard``. ``code_versions`` names the code that draws: no shard of pictures outlives it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from dither._version import __version__
from dither.checkpoint import Header, header_of
from dither.checkpoint.header import plan_digest
from dither.errors import BadModel, DitherError
from dither.sources import Source, open_source

__all__ = ["Subject", "check_pair", "code_versions", "header", "open_subject", "scheduler_settings"]

RUNNING = ("kernels", "numerics", "zoo", "nn", "clock.py", "packed.py", "sampling.py", "pictures.py")
"""Code that a picture passes through."""


@dataclass(frozen=True)
class Subject:
    """An opened model with the digest of what it draws, and the text that opens it again in another process.

    Args:
        source: the opened model.
        digest: hexadecimal.
        text: what the user called it; None for a model that lives in this process only.
    """

    source: Source
    digest: str
    text: str | None


def open_subject(given: str | Path | Source) -> Subject:
    """Open a model, unless it is open, and name what it draws.

    Raises:
        BadModel: it cannot be opened, or has no pipeline to sample with.
    """
    source = given if isinstance(given, Source) else open_source(str(given))
    if source.pipeline is None:
        raise BadModel(f"'{source.name}' has no pipeline to sample with, only a network")
    return Subject(source, _digest(source), None if isinstance(given, Source) else _lasting(str(given)))


def _lasting(text: str) -> str:
    """A path that means the same in a process that was started elsewhere."""
    path = Path(text).expanduser()
    return str(path.resolve()) if path.exists() else text


def header(source: Source) -> Header:
    """What dither wrote about a quantized model.

    Raises:
        BadModel: it is not quantized by dither.
    """
    try:
        return header_of(source.model)
    except DitherError:
        raise BadModel(f"'{source.name}' is not quantized by dither: there is nothing to compare") from None


def check_pair(small: Source, full: Source) -> None:
    """Refuse two models whose pictures are not of the same seeds: other network, other shapes, other scheduler.

    Raises:
        BadModel: names what differs.
    """
    a, b = type(small.model).__name__, type(full.model).__name__
    if a != b:
        raise BadModel(f"'{small.name}' is a {a} and '{full.name}' a {b}: they cannot be compared")
    ours, theirs = ({k: v.shape for k, v in s.model.named_parameters() if k.endswith("bias")} for s in (small, full))
    for name in sorted(set(ours) & set(theirs)):
        if ours[name] != theirs[name]:
            raise BadModel(f"'{small.name}' and '{full.name}' differ in shape at '{name}': they cannot be compared")
    mine, other = scheduler_settings(small), scheduler_settings(full)
    for key in sorted(set(mine) | set(other)):
        if mine.get(key) != other.get(key):
            raise BadModel(
                f"the schedulers of '{small.name}' and '{full.name}' differ in '{key}' ({mine.get(key)} and "
                f"{other.get(key)}): their pictures would differ without any quantization"
            )


def scheduler_settings(source: Source) -> dict[str, Any]:
    """Class and settings of the pipeline's scheduler, as JSON."""
    scheduler: Any = getattr(source.pipeline, "scheduler", None)
    if scheduler is None:
        return {}
    settings = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    plain = json.loads(json.dumps(settings, default=str), parse_constant=str)  # JSON has no infinity; DPM-Solver does
    return {"class": type(scheduler).__name__, **plain}


def _digest(source: Source) -> str:
    found = hashlib.blake2b(digest_size=16)
    found.update(json.dumps([scheduler_settings(source), _plan(source)], sort_keys=True).encode())
    for name, module in _networks(source):
        for key, tensor in sorted(_tensors(module)):
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(f"{name}.{key}:{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(flat.numpy().data)
    return found.hexdigest()


def _plan(source: Source) -> str:
    try:
        return plan_digest(header_of(source.model).plan)
    except DitherError:
        return "full precision"


def _networks(source: Source) -> Iterator[tuple[str, nn.Module]]:
    components: Mapping[str, Any] = getattr(source.pipeline, "components", {})
    for name, part in sorted({**components, source.component: source.model}.items()):
        if isinstance(part, nn.Module):
            yield name, part


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@lru_cache
def code_versions() -> list[str]:
    """Versions of this library and those under it, and a digest of its code that draws."""
    root = Path(__file__).parent.parent
    found = hashlib.blake2b(digest_size=16)
    for name in RUNNING:
        part = root / name
        for file in sorted(part.rglob("*.py")) if part.is_dir() else [part]:
            found.update(file.read_bytes())
    return [__version__, torch.__version__, diffusers.__version__, found.hexdigest()]
