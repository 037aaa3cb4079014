"""Recorded denoiser calls in one safetensors file: tensors as they are, and all else as JSON in its metadata.

    tensors     "0", "1", ...: batch first, as they were recorded; equal ones once
    metadata    one key, "dither": {"kind": "calls", "version": 1, "model": CLASS, "family": ..., "made": ...,
                "calls": [{"args": [...], "kwargs": {...}}, ...]}, with arguments as ``structure`` says

The same calls give the same bytes. Sizes are checked before anything is read, and nothing is unpickled or evaluated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dither.errors import BadModel, BadValue
from dither.evaluation.npzfile import replacing
from dither.models import Call, adapter_for
from dither.recorded.samples import read_samples
from dither.recorded.structure import Pool, calls_from, calls_to, check_tensor
from dither.weightfile import check_safetensors

__all__ = ["CallFile", "load_calls", "read_calls", "save_calls"]

KEY, KIND, VERSION = "dither", "calls", 1
FIELDS = {"kind", "version", "model", "family", "made", "calls"}
HEAD_BYTES = 2**24  # 64 calls of a large pipeline take 32 KiB
FILE_BYTES = 2**36
SAMPLES = ".npz"


@dataclass(frozen=True)
class CallFile:
    """What is in a file of calls.

    Args:
        path: of the file.
        calls: in the order they came.
        model: class of the denoiser that they are for; empty if the file does not say.
        family: of its adapter, likewise.
        made: how they were drawn, if the file says it: fields of ``Calibration``, and ``seed``.
    """

    path: Path
    calls: tuple[Call, ...]
    model: str = ""
    family: str = ""
    made: Mapping[str, Any] | None = None


def save_calls(
    path: str | Path, calls: Sequence[Call], model: nn.Module | None = None, made: dict[str, Any] | None = None
) -> None:
    """Write denoiser calls into a file, which appears whole or not at all.

    Args:
        path: of the file; replaced if it is there.
        calls: such as ``dither.record`` gives. Tensors of any nest of lists, tuples and dicts, with numbers and text.
        model: the denoiser; with it, a model of another class refuses the file.
        made: how they were drawn, as JSON; for people and for ``dither quantize``.

    Raises:
        BadValue: no call, an argument that cannot be stored, NaN or infinity, or the file cannot be written.
    """
    if not calls:
        raise BadValue(f"'{path}' cannot be written: there is no denoiser call")
    _check_made(made)
    pool = Pool()
    head = {
        "kind": KIND,
        "version": VERSION,
        "model": "" if model is None else type(model).__name__,
        "family": "" if model is None else adapter_for(model).family,
        "made": made,
        "calls": calls_to(calls, pool),
    }
    try:
        text = json.dumps(head, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise BadValue(f"'{path}' cannot be written: 'made' is not JSON: {e}") from None
    if len(text) > HEAD_BYTES:
        raise BadValue(f"'{path}' cannot be written: beside their tensors, the calls hold more than {HEAD_BYTES} bytes")
    data = save({str(i): tensor for i, tensor in enumerate(pool.tensors)}, {KEY: text})
    with replacing(Path(path)) as stream:
        stream.write(data)


def load_calls(path: str | Path) -> tuple[Call, ...]:
    """The calls in a file of ``save_calls`` or ``dither record``, or of stored samples (.npz, see ``read_samples``).

    Raises:
        BadValue: missing, damaged, of another kind or version, or holding what cannot be right; the file is named.
    """
    return read_calls(path).calls


def read_calls(path: str | Path) -> CallFile:
    """All that is in a file of calls. Raises as ``load_calls``."""
    path = Path(path)
    if path.suffix.lower() == SAMPLES:
        calls, model, family = read_samples(path)
        return CallFile(path, calls, model, family)
    try:
        check_safetensors(path)
        return _read(path)
    except BadModel as e:  # names the file
        raise BadValue(str(e).removesuffix(".")) from None
    except BadValue as e:
        raise BadValue(f"'{path}': {e}") from None
    except FileNotFoundError:
        raise BadValue(f"'{path}' is missing") from None
    except OSError as e:
        raise BadValue(f"'{path}' cannot be read: {e.strerror or e}") from None
    except (SafetensorError, RecursionError, RuntimeError) as e:
        raise BadValue(f"'{path}' is damaged: {e}") from None


def _read(path: Path) -> CallFile:
    if path.stat().st_size > FILE_BYTES:
        raise BadValue(f"it takes more than {FILE_BYTES} bytes, more than any honest file's")
    with safe_open(path, framework="pt") as handle:
        head = _head((handle.metadata() or {}).get(KEY))
        names = set(handle.keys())
        if names != {str(i) for i in range(len(names))}:
            raise BadValue("its tensors are not numbered from 0")
        tensors: list[Tensor] = [handle.get_tensor(str(i)) for i in range(len(names))]
    used: set[int] = set()

    def tensor(number: int) -> Tensor:
        if not 0 <= number < len(tensors):
            raise IndexError(number)
        used.add(number)
        return tensors[number]

    for i, each in enumerate(tensors):
        check_tensor(each, f"tensor {i}")
    calls = calls_from(head["calls"], tensor)
    if not calls:
        raise BadValue("it holds no denoiser call")
    if len(used) != len(tensors):
        raise BadValue(f"tensor {min(set(range(len(tensors))) - used)} belongs to no call")
    return CallFile(path, calls, head["model"], head["family"], head["made"])


def _head(text: str | None) -> dict[str, Any]:
    """The metadata of a file of calls, all but its calls checked."""
    if text is None:
        raise BadValue("it is no file of denoiser calls: it has no such metadata")
    if len(text) > HEAD_BYTES:
        raise BadValue(f"its metadata takes more than {HEAD_BYTES} bytes, more than any honest file's")
    try:
        head = json.loads(text)
    except ValueError as e:
        raise BadValue(f"its metadata is not JSON: {e}") from None
    if not isinstance(head, dict) or head.get("kind") != KIND:
        raise BadValue("it is no file of denoiser calls: its metadata tells of another kind")
    if type(head.get("version")) is not int or head["version"] != VERSION:
        raise BadValue(f"version {head.get('version')!r} of its format is unknown here; this dither reads {VERSION}")
    if head.keys() != FIELDS:
        raise BadValue(f"its metadata must have the fields {', '.join(sorted(FIELDS))}, and no others")
    if not isinstance(head["model"], str) or not isinstance(head["family"], str):
        raise BadValue("its metadata must name 'model' and 'family' as text")
    _check_made(head["made"])
    return head


def _check_made(made: Any) -> None:
    """How calls were drawn may be told by anybody; what ``quantize`` reads of it must be what it should."""
    if made is None:
        return
    if not isinstance(made, dict):
        raise BadValue("'made' in its metadata must be an object or null")
    samples, prompts = made.get("samples", 1), made.get("prompts", [])
    if type(samples) is not int or not 1 <= samples <= 10**6:
        raise BadValue(f"'made.samples' in its metadata is {str(samples)[:40]}: it must be a number of pictures")
    if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
        raise BadValue("'made.prompts' in its metadata must be a list of texts")
