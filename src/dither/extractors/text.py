"""How well a picture shows what a text says: CLIPScore (arXiv 2104.08718) through transformers.

The score is ``evaluation.text.clip_score`` of the embeddings made here, which serve CLIPSIM of video frames too. Scores of
different CLIP models cannot be compared. Prompts longer than the model's 77 tokens are cut. Pictures: see ``preprocess``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dither.errors import BadModel, BadValue
from dither.evaluation.protocol import Float64, Pictures
from dither.evaluation.text import clip_score
from dither.extractors.extras import transformers_class
from dither.extractors.hub import load_model, load_tokenizer, locate
from dither.extractors.preprocess import Preprocess, in_batches, open_device
from dither.extractors.vision import clip_embedding, clip_preprocess, unit

__all__ = ["CLIP_TEXT", "ClipScore", "PromptScorer", "check_prompts", "open_clip_text"]

Floats = npt.NDArray[np.float32]

CLIP_TEXT = "openai/clip-vit-large-patch14"
HIGHEST_ID = 2  # an end token of this id in a config means: the highest id of each row


class PromptScorer(Protocol):
    """Scores each picture against its own prompt."""

    @property
    def name(self) -> str:
        """Printed beside each number, since scores of different scorers cannot be compared."""
        ...

    def __call__(self, pictures: Pictures, prompts: Sequence[str]) -> Float64:
        """Map uint8 (N, H, W, C) and N prompts to scores (N,)."""
        ...


@dataclass(frozen=True)
class ClipScore:
    """CLIPScore of a ``CLIPModel`` and its tokenizer."""

    model: Any
    tokenizer: Any
    preprocess: Preprocess
    name: str
    device: torch.device
    batch: int = 32

    def __call__(self, pictures: Pictures, prompts: Sequence[str]) -> Float64:
        """Uint8 (N, H, W, C) and N prompts to scores (N,) in 0..100.

        Raises:
            BadValue: not one prompt for each picture.
        """
        check_prompts(pictures, prompts, self.name)
        return clip_score(self.embed_pictures(pictures), self.embed_prompts(prompts))

    def embed_pictures(self, pictures: Pictures) -> Floats:
        """Uint8 (N, H, W, C) to unit-length embeddings (N, D)."""
        (embeddings,) = in_batches(pictures, self.batch, self.name, self._run_pictures)
        return embeddings

    def embed_prompts(self, prompts: Sequence[str]) -> Floats:
        """N prompts to unit-length embeddings (N, D)."""
        rows = [list(prompts[i : i + self.batch]) for i in range(0, len(prompts), self.batch)]
        with torch.no_grad():
            embeddings: Floats = torch.cat([self._run_prompts(row) for row in rows]).cpu().numpy()
        return embeddings

    def _run_pictures(self, pictures: Pictures) -> tuple[Tensor]:
        pixels = self.preprocess(pictures).to(self.device)
        return (clip_embedding(self.model.vision_model, self.model.visual_projection, pixels),)

    def _run_prompts(self, prompts: list[str]) -> Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output  # (N, width)
        return unit(self.model.text_projection(pooled))


def check_prompts(pictures: Pictures, prompts: Sequence[str], name: str) -> None:
    """Raises BadValue, naming the scorer, unless there is one text for each picture."""
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise BadValue(f"'{name}' takes a list of prompts, each a text.")
    if len(prompts) != len(pictures):
        raise BadValue(f"'{name}' takes one prompt for each picture, not {len(prompts)} for {len(pictures)}.")


def open_clip_text(model: str = CLIP_TEXT, device: str = "cpu", batch: int = 32) -> ClipScore:
    """CLIPScore with ``model``: a folder with weights and tokenizer, or a Hub id.

    Raises:
        BadModel: it cannot be found or loaded, is no CLIP, or its tokenizer ends texts with another token.
    """
    where, (source, label) = open_device(device), locate(model, "clip text")
    both = load_model(transformers_class("CLIPModel", "clip text"), source, ("clip",), "clip text")
    tokenizer = load_tokenizer(transformers_class("CLIPTokenizer", "clip text"), source, "clip text")
    expected = both.config.text_config.eos_token_id
    if expected not in (HIGHEST_ID, tokenizer.eos_token_id):
        raise BadModel(
            f"clip text: {source!r} ends texts with token {expected}, and its tokenizer with {tokenizer.eos_token_id}."
        )
    preprocess = clip_preprocess(both.config.vision_config.image_size, label)
    return ClipScore(both.to(where), tokenizer, preprocess, f"clip:{label} [{preprocess.label}]", where, batch)
