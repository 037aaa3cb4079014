"""What users call MODEL: one text that becomes a loaded denoiser with its adapter, and a pipeline where there is one.

    zoo:NAME                      a model that ships with dither
    folder with model_index.json  a diffusers pipeline, quantized by dither or not
    folder with config.json       one diffusers model
    file .pt or .safetensors      an original DiT checkpoint
    owner/name                    a pipeline on the Hugging Face Hub

Files are checked before anything loads them, so that an error names the file. Nothing here runs code from a checkpoint.
"""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin
from diffusers.utils import logging
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from torch import nn

from dither.errors import BadModel, DitherError
from dither.models import Adapter, adapter_for
from dither.weightfile import check_safetensors, weight_files_in

__all__ = ["Source", "open_source"]

ZOO = "zoo:"
HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
PIPELINE_FILE, MODEL_FILE = "model_index.json", "config.json"
CHECKPOINTS = (".pt", ".pth", ".safetensors")
DENOISERS = ("transformer", "unet")
PIXELS = (1, 3)


@dataclass(frozen=True)
class Source:
    """A loaded model.

    Args:
        name: short, without folders.
        pipeline: that samples with the model; None where only the model is known.
        model: the denoiser, in eval mode.
        adapter: of its family.
        component: its name in the pipeline.
        weight_files: of the denoiser.
        weight_bytes: their sizes on the disk, summed.
        zoo: name of the zoo model, if it is one.
    """

    name: str
    pipeline: DiffusionPipeline | None
    model: nn.Module
    adapter: Adapter
    component: str
    weight_files: tuple[Path, ...]
    weight_bytes: int
    zoo: str | None = None


def open_source(text: str, dtype: torch.dtype = torch.float32) -> Source:
    """Loads what ``text`` means, on the CPU.

    Raises:
        BadModel: it cannot be found, read or understood; one sentence names the file or the field.
    """
    if text.startswith(ZOO):
        return _open_zoo(text, dtype)
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_folder(path, path.resolve().name, dtype)
    if path.is_file():
        return _open_file(path, dtype)
    if re.fullmatch(HUB_ID, text):
        return _open_hub(text, dtype)
    raise BadModel(
        f"There is no file or folder {text!r} (other models are written zoo:NAME, or owner/name for the Hub)."
    )


def _open_zoo(text: str, dtype: torch.dtype) -> Source:
    from dither import zoo  # its weights and classes are needed by few

    name = text.removeprefix(ZOO)
    with _quiet():
        pipeline: Any = zoo.load(name)
    nn.Module.to(pipeline.transformer, dtype)  # diffusers' own ``to`` logs a note at every cast
    files = weight_files_in(zoo.path(name) / "transformer")
    return _source(text, pipeline, pipeline.transformer, "transformer", files, name)


def _open_folder(folder: Path, name: str, dtype: torch.dtype) -> Source:
    if (folder / PIPELINE_FILE).is_file():
        return _open_pipeline(folder, name, dtype)
    if (folder / MODEL_FILE).is_file():
        model = _load_model(folder, dtype)
        return _source(name, _pipeline_around(model), model, "transformer", weight_files_in(folder))
    raise BadModel(
        f"{folder} is no model: it has neither {PIPELINE_FILE} (a pipeline) nor {MODEL_FILE} (a transformer)."
    )


def _open_pipeline(folder: Path, name: str, dtype: torch.dtype) -> Source:
    from dither.zoo import register

    register()
    index = _read_json(folder / PIPELINE_FILE)
    component = next((c for c in DENOISERS if (folder / c / MODEL_FILE).is_file() and c in index), None)
    if component is None:
        raise BadModel(f"{folder / PIPELINE_FILE} names no denoiser: none of {', '.join(DENOISERS)} is a folder here.")
    _class_named(folder / PIPELINE_FILE, index, DiffusionPipeline)
    for other in folder.glob("*/*.safetensors"):
        check_safetensors(other)
    model = _load_model(folder / component, dtype)  # apart from the rest, so that missing weights are noticed
    loader: Any = DiffusionPipeline
    try:
        with _quiet():
            pipeline = loader.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **{component: model})
    except DitherError:
        raise
    except Exception as error:  # diffusers and the libraries of the components raise anything
        raise BadModel(f"The pipeline {folder} cannot be loaded: {_first_line(error)}") from error
    return _source(name, pipeline, model, component, weight_files_in(folder / component))


def _open_file(path: Path, dtype: torch.dtype) -> Source:
    from dither.models.facebook import read_facebook

    if path.suffix not in CHECKPOINTS:
        raise BadModel(f"{path} is no model: a file must be an original DiT checkpoint, {' or '.join(CHECKPOINTS)}.")
    if path.suffix == ".safetensors":
        check_safetensors(path)
    model: Any = read_facebook(path, dtype)
    return _source(path.stem, _pipeline_around(model), model, "transformer", (path,))


def _open_hub(text: str, dtype: torch.dtype) -> Source:
    try:
        folder = Path(DiffusionPipeline.download(text))
    except Exception as error:  # each network library has errors of its own
        raise BadModel(
            f"There is no file or folder {text!r}, and no pipeline of this name came from the Hub: {_why_not(error)}."
        ) from error
    return _open_folder(folder, text.rpartition("/")[2], dtype)


def _why_not(error: BaseException) -> str:
    """Why the Hub gave nothing. diffusers buries the cause under advice."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        return "it was not asked, as HF_HUB_OFFLINE is set, and no earlier download is complete"
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return "it has none, or a private one"
    return _first_line(chain[-1])


def _load_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The diffusers model in a folder; weights that are missing there are an error, not random numbers."""
    config = _read_json(folder / MODEL_FILE)
    kind = _class_named(folder / MODEL_FILE, config, ModelMixin)
    for file in weight_files_in(folder):
        if file.suffix == ".safetensors":
            check_safetensors(file)
    try:
        with _quiet():
            model, info = kind.from_pretrained(
                folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True
            )
    except DitherError:
        raise
    except Exception as error:  # a model's own constructor checks its config in its own way
        raise BadModel(f"The model {folder} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing and "quantization_config" not in config:  # a quantizer answers for its own tensors
        raise BadModel(f"The weights in {folder} lack {missing[0]!r} ({len(missing)} tensors are missing).")
    return cast(nn.Module, model.eval())


def _class_named(file: Path, config: dict[str, Any], base: type) -> Any:
    """The diffusers class that a config file names."""
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise BadModel(f"{file} has no '_class_name': it was not written by diffusers.")
    found = getattr(diffusers, name, None) if name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise BadModel(
            f"{file} names the class {name!r}, which is no {base.__name__} of diffusers {diffusers.__version__}."
        )
    return found


def _pipeline_around(model: nn.Module) -> DiffusionPipeline | None:
    """A class-conditional DiT can be sampled without a VAE: its latents are shown as they are."""
    from dither.zoo import PixelDiTPipeline

    if type(model).__name__ != "DiTTransformer2DModel":
        return None
    transformer, scheduler, pipeline = cast(Any, model), cast(Any, DDIMScheduler), cast(Any, PixelDiTPipeline)
    clip = transformer.config.in_channels in PIXELS
    return cast(
        DiffusionPipeline,
        pipeline(transformer, scheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=clip)),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars, and no note that newer versions of diffusers call ``torch_dtype`` ``dtype``: older ones do not."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadModel(f"{file} is not readable JSON: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise BadModel(f"{file} is not a JSON object.")
    return value


def _source(
    name: str,
    pipeline: DiffusionPipeline | None,
    model: nn.Module,
    component: str,
    files: Sequence[Path],
    zoo: str | None = None,
) -> Source:
    size = sum(file.stat().st_size for file in files)
    return Source(name, pipeline, model, adapter_for(model), component, tuple(files), size, zoo)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
