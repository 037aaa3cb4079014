"""Tiny random models of transformers, saved as folders."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def randomize(model, seed):
    """Weights so large that different pictures have very different features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.4, generator=generator)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP for pictures of 32 x 32 with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    folder.mkdir()
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config={**sizes, **tokens}, vision_config=vision, projection_dim=12))
    randomize(model, seed=0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory):
    """A DINOv2 trained, as it were, on pictures of 28 x 28."""
    folder = tmp_path_factory.mktemp("models") / "tiny-dinov2"
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    model = Dinov2Model(config)
    randomize(model, seed=1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures():
    """Five colour pictures (5, 20, 20, 3)."""
    return np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), np.uint8)
