"""Finished layers of a running job on disk, so that an interrupted ``quantize --resume`` goes on where it stopped.

DIR.partial/job.json                         what the job is: model, recipe, seed, version
DIR.partial/LAYER.safetensors                the stored tensors of one layer, written whole or not at all
DIR.partial/sensitivity.WHAT.safetensors     a few measured numbers, as mixed precision needs many of
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dither.errors import BadCheckpoint, DitherError

__all__ = ["FolderStore", "check_output", "open_store"]

_JOB = "job.json"
_MEASURED = "sensitivity."  # as ``stages.MEASURED``: what is kept under such a name is no layer


class FolderStore:
    """A ``stages.Store`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reused = 0

    def __contains__(self, name: object) -> bool:
        """Whether a layer was finished earlier, or a measurement made."""
        return self._path(str(name)).is_file()

    def get(self, name: str) -> Mapping[str, Tensor] | None:
        """The tensors of a layer that was finished earlier, or of a measurement, or None."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            tensors: dict[str, Tensor] = load_file(path)
        except SafetensorError as e:
            raise BadCheckpoint(f"'{path}' is damaged: delete '{self.folder}' and start again ({e})") from None
        self.reused += not name.startswith(_MEASURED)
        return tensors

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a layer or a measurement."""
        path = self._path(name)
        half = path.with_suffix(".writing")
        try:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, half)
            os.replace(half, path)
        except OSError as e:
            half.unlink(missing_ok=True)
            raise DitherError(f"cannot write '{path}': {e.strerror or e}") from None
        except SafetensorError as e:  # a full disk reaches us as this
            half.unlink(missing_ok=True)
            raise DitherError(f"cannot write '{path}': {e}") from None

    def kept(self) -> int:
        """How many layers are finished."""
        return sum(not file.name.startswith(_MEASURED) for file in self.folder.glob("*.safetensors"))

    def measured(self) -> int:
        """How many measurements are kept."""
        return sum(1 for _ in self.folder.glob(f"{_MEASURED}*.safetensors"))

    def told(self) -> str:
        """What is kept, for people; empty if nothing is."""
        parts = [(self.measured(), "measurement"), (self.kept(), "finished layer")]
        return " and ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in parts if n)

    def remove(self) -> None:
        """Delete the folder: the job is done, or nothing in it is worth keeping."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def check_output(output: Path, resume: bool) -> None:
    """Refuse, before any work, an output that is in use, or an interrupted job that nobody asked to go on with.

    Raises:
        DitherError: one sentence names the folder.
    """
    if output.exists() and not output.is_dir():
        raise DitherError(f"'{output}' is a file: -o names a folder to write")
    if output.exists() and any(output.iterdir()):
        raise DitherError(f"'{output}' is there already and not empty: choose another folder, or delete it")
    folder = _beside(output)
    if folder.exists() and not resume:
        raise DitherError(f"'{folder}' holds an interrupted run: give --resume to go on with it, or delete it")


def _beside(output: Path) -> Path:
    output = output.expanduser().resolve()  # '.' has no name of its own
    return output.with_name(output.name + ".partial")


def open_store(output: Path, job: Mapping[str, Any], resume: bool) -> FolderStore:
    """The store beside an output folder.

    Args:
        output: the folder that the job will write in the end.
        job: what identifies it, as JSON.
        resume: go on with an interrupted job.

    Raises:
        DitherError: as ``check_output``; or the interrupted job is another one.
    """
    check_output(output, resume)
    folder = _beside(output)
    text = json.dumps(job, sort_keys=True, indent=1)
    known = folder / _JOB
    if not folder.exists():
        try:
            folder.mkdir(parents=True)
            try:
                known.write_text(text, encoding="utf-8")
            except OSError:
                FolderStore(folder).remove()  # half of it would stand in the next run's way
                raise
        except OSError as e:
            raise DitherError(f"cannot write '{folder}': {e.strerror or e}") from None
        return FolderStore(folder)
    if not known.is_file() or known.read_text(encoding="utf-8") != text:
        raise DitherError(
            f"'{folder}' belongs to a run with another model, recipe or seed: delete it, or repeat that run"
        )
    return FolderStore(folder)
