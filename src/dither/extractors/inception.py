"""Inception features by the conventions of ADM's evaluator (arXiv 2105.05233), through torch-fidelity (extra ``fid``).

The network is the TensorFlow graph of 2015-12-05 with its weights converted, its first layer included: TensorFlow 1's
bilinear resize to 299 without antialias, on values 0..255, then ``(x - 128) / 128``. One pass gives

    pool     ``pool_3``                                                     (N, 2048)   FID, precision, recall, KID
    logits   pool times the classifier's matrix, without its bias           (N, 1008)   Inception Score
    spatial  ``mixed_6/conv``, channels 0..6, rows before channels: HWC     (N, 2023)   sFID, 17 x 17 x 7

``mixed_6/conv`` is torch-fidelity's ``Mixed_6d.branch1x1`` after its ReLU.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dither.errors import BadModel
from dither.evaluation.protocol import Pictures
from dither.extractors.extras import import_extra
from dither.extractors.hub import digest, first_line
from dither.extractors.preprocess import as_rgb, in_batches, open_device

__all__ = ["InceptionFeatures", "open_inception"]

SPATIAL_CHANNELS = 7
MODULE = "torch_fidelity.feature_extractor_inceptionv3"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class InceptionFeatures:
    """torch-fidelity's Inception with the three outputs that ADM's metrics use."""

    network: nn.Module
    name: str
    device: torch.device
    batch: int = 32

    @property
    def spatial_name(self) -> str:
        """Printed beside sFID, as ``name`` is beside FID."""
        return self.name.replace("pool3", "mixed_6 spatial")

    def __call__(self, images: Pictures) -> tuple[Floats, Floats]:
        """Uint8 (N, H, W, C) to pool features (N, 2048) and logits without bias (N, 1008)."""
        pool, logits, _ = self.both(images)
        return pool, logits

    def both(self, images: Pictures) -> tuple[Floats, Floats, Floats]:
        """Pool features (N, 2048), logits (N, 1008) and spatial features (N, 2023), in one pass."""
        pool, logits, spatial = in_batches(images, self.batch, self.name, self._run)
        return pool, logits, spatial

    def spatial(self, images: Pictures) -> Floats:
        """Spatial features (N, 2023) alone; the whole pass is made all the same."""
        return self.both(images)[2]

    def _run(self, images: Pictures) -> tuple[Tensor, ...]:
        x = torch.from_numpy(np.ascontiguousarray(as_rgb(images).transpose(0, 3, 1, 2))).to(self.device)  # (N, 3, H, W)
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen.append(output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1))  # (N, 17 * 17 * 7)

        hook = self.network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(keep)
        try:
            pool, logits = self.network(x)
        finally:
            hook.remove()
        return pool, logits, seen[0]


def open_inception(weights: str = "", device: str = "cpu", batch: int = 32) -> InceptionFeatures:
    """The Inception network that FID is defined with.

    Args:
        weights: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``; if empty, it is downloaded once into
            torch.hub's cache.
        device: that runs it.
        batch: pictures at a time.

    Raises:
        MissingExtra: torch-fidelity or a working torchvision is absent.
        BadModel: the weights cannot be had, hold more than tensors, or are of another network.
    """
    module = import_extra(MODULE, package="torch-fidelity", extra="fid", what="Inception (FID, sFID, IS)")
    where = open_device(device)
    file = Path(weights).expanduser() if weights else _download(module.URL_INCEPTION_V3)
    check_tensors_only(file)
    try:
        network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
        )
    except RuntimeError as error:
        raise BadModel(f"inception: {file} holds the weights of another network: {first_line(error)}") from None
    name = f"inception@{digest([file])} [TF1 bilinear 299, pool3]"
    return InceptionFeatures(network.to(where), name, where, batch)


def check_tensors_only(file: Path) -> None:
    """Raises BadModel unless ``file`` is a checkpoint of plain tensors, which cannot run code while it is read.

    torch-fidelity reads it with pickle's full powers. A file that torch's restricted reader accepts can do no more there.
    """
    if not file.is_file():
        raise BadModel(f"inception: there is no weights file {file}.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted reader raises anything on junk
        raise BadModel(f"inception: {file} is no file of plain tensors: {first_line(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BadModel(f"inception: {file} is no table of tensors.")


def _download(url: str) -> Path:
    """The file behind ``url`` in torch.hub's cache, downloaded if it is not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), progress=False)
        except OSError as error:
            raise BadModel(
                f"inception: {url} cannot be downloaded ({first_line(error)}): give the file as inception:PATH."
            ) from None
    return file
