"""Loading of transformers' models for measuring: from a folder or the Hugging Face Hub, and nothing by halves.

Only the named class is built, from safetensors only, so no code or pickle of a checkpoint runs. A checkpoint of another
kind or with a weight missing is refused: transformers would fill the gap with random numbers and go on.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dither.errors import BadModel, DitherError

__all__ = ["load_model", "load_tokenizer", "locate"]

HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def locate(text: str, what: str) -> tuple[str, str]:
    """Where transformers finds the model ``text``, and a label that tells it from others.

    The label of a Hub id is the id. That of a folder is its name and a digest of its weights, so that two folders of one
    name are not taken for the same model, and one model in two places is.

    Raises:
        BadModel: it is neither a folder with weights nor ``owner/name``; the sentence begins with ``what``.
    """
    folder = _folder(text)
    if folder is not None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise BadModel(f"{what}: the folder {folder} holds no .safetensors weights.")
        return str(folder), f"{folder.resolve().name}@{digest(files)}"
    if re.fullmatch(HUB_ID, text):
        return text, text
    raise BadModel(f"{what}: {text[:200]!r} is neither a folder nor an owner/name of the Hugging Face Hub.")


def load_model(cls: Any, source: str, kinds: tuple[str, ...], what: str) -> Any:
    """A model of transformers' class ``cls`` in float32 and eval mode, on the CPU.

    Args:
        cls: of transformers.
        source: a folder or Hub id, as ``locate`` gives it.
        kinds: the ``model_type`` of the configurations that this class can hold.
        what: the sentence of an error begins with it.

    Raises:
        BadModel: it is not there, of another kind, damaged, or incomplete.
    """
    try:
        facts, _ = cls.config_class.get_config_dict(source)
        kind = facts.get("model_type")
        if kind not in kinds:
            raise BadModel(f"{what}: {source!r} is a model of type {kind!r}, not {' or '.join(map(repr, kinds))}.")
        with _quiet():
            model, report = cls.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    except DitherError:
        raise
    except Exception as error:  # transformers, safetensors and the network raise anything
        raise BadModel(f"{what}: {source!r} cannot be loaded: {first_line(error)}") from error
    absent = sorted({*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])})
    if absent:
        raise BadModel(f"{what}: {source!r} lacks {len(absent)} of its weights, such as '{absent[0]}'.")
    return model.float().eval().requires_grad_(False)


def load_tokenizer(cls: Any, source: str, what: str) -> Any:
    """The tokenizer of class ``cls`` beside a model.

    Raises:
        BadModel: it is not there or cannot be read.
    """
    try:
        with _quiet():
            return cls.from_pretrained(source)
    except Exception as error:  # as above
        raise BadModel(f"{what}: the tokenizer of {source!r} cannot be loaded: {first_line(error)}") from error


def digest(files: list[Path]) -> str:
    """Eight hex digits of the contents of files."""
    state = hashlib.blake2b(digest_size=4)
    for file in files:
        with file.open("rb") as f:
            while block := f.read(1 << 20):
                state.update(block)
    return state.hexdigest()


def first_line(error: BaseException) -> str:
    """Of the message of an error, or its type where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _folder(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a null byte
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' notes on weights that this class leaves out, and its bars; errors stay."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
