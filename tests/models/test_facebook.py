"""The original DiT written out from its paper on bare tensors, beside the converted model."""

import argparse
import math
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dither.errors import BadModel
from dither.models import adapter_for
from dither.models.facebook import read_facebook

WIDTH, HEADS, CLASSES, GRID = 384, 6, 7, 4


def sinusoids(positions: Tensor, width: int, count: float, sine_first: bool) -> Tensor:
    angles = positions.double()[:, None] * 10000.0 ** (-torch.arange(width // 2) / count)
    parts = [angles.sin(), angles.cos()]
    return torch.cat(parts if sine_first else parts[::-1], 1).float()


def position_table() -> Tensor:
    """First half of the channels: the column; second half: the row."""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    return torch.cat([sinusoids(p.flatten(), WIDTH // 2, WIDTH // 4, True) for p in (columns, rows)], 1)[None]


def checkpoint(patch: int, out_channels: int, depth: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of the original's layout; unlike a fresh original, no modulation is zero."""
    g = torch.Generator().manual_seed(seed)
    linears = {"t_embedder.mlp.0": (WIDTH, 256), "t_embedder.mlp.2": (WIDTH, WIDTH)}
    for n in range(depth):
        linears |= {
            f"blocks.{n}.attn.qkv": (3 * WIDTH, WIDTH),
            f"blocks.{n}.attn.proj": (WIDTH, WIDTH),
            f"blocks.{n}.mlp.fc1": (4 * WIDTH, WIDTH),
            f"blocks.{n}.mlp.fc2": (WIDTH, 4 * WIDTH),
            f"blocks.{n}.adaLN_modulation.1": (6 * WIDTH, WIDTH),
        }
    linears["final_layer.adaLN_modulation.1"] = (2 * WIDTH, WIDTH)
    linears["final_layer.linear"] = (patch * patch * out_channels, WIDTH)
    tensors = {
        "pos_embed": position_table(),
        "x_embedder.proj.weight": torch.randn(WIDTH, 4, patch, patch, generator=g) * 0.3,
        "x_embedder.proj.bias": torch.randn(WIDTH, generator=g) * 0.3,
        "y_embedder.embedding_table.weight": torch.randn(CLASSES + 1, WIDTH, generator=g),
    }
    for name, (rows, columns) in linears.items():
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=g) / math.sqrt(columns)
        tensors[f"{name}.bias"] = torch.randn(rows, generator=g) * 0.1
    return tensors


def original(w: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, frequencies: int) -> Tensor:
    """Peebles & Xie, section 3: patchify, adaLN-Zero blocks, unpatchify. ``frequencies``: 10000^(-i/frequencies)."""

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normalized(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        h = (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, unbiased=False, keepdim=True) + 1e-6)
        return h * (1 + scale[:, None]) + shift[:, None]

    p = w["x_embedder.proj.weight"].shape[-1]
    n = len(x)
    patches = x.reshape(n, 4, GRID, p, GRID, p).permute(0, 2, 4, 1, 3, 5).reshape(n, GRID * GRID, 4 * p * p)
    h = patches @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"] + w["pos_embed"]
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", sinusoids(t, 256, frequencies, False))))
    c = F.silu(time + w["y_embedder.embedding_table.weight"][y])
    block = 0
    while f"blocks.{block}.attn.qkv.weight" in w:
        b = f"blocks.{block}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"{b}.adaLN_modulation.1", c).split(WIDTH, 1)
        qkv = linear(f"{b}.attn.qkv", normalized(h, shift1, scale1)).reshape(n, -1, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS), -1)
        h = h + gate1[:, None] * linear(f"{b}.attn.proj", (weights @ v).transpose(1, 2).reshape(n, -1, WIDTH))
        m = linear(f"{b}.mlp.fc1", normalized(h, shift2, scale2))
        m = 0.5 * m * (1 + torch.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m**3)))
        h = h + gate2[:, None] * linear(f"{b}.mlp.fc2", m)
        block += 1
    shift, scale = linear("final_layer.adaLN_modulation.1", c).split(WIDTH, 1)
    out = linear("final_layer.linear", normalized(h, shift, scale))
    return out.reshape(n, GRID, GRID, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(n, -1, GRID * p, GRID * p)


def inputs(patch: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(3, 4, GRID * patch, GRID * patch, generator=torch.Generator().manual_seed(5))
    return x, torch.tensor([3, 500, 999]), torch.tensor([0, 4, CLASSES])


@torch.no_grad()
@pytest.mark.parametrize(("patch", "out_channels"), [(2, 8), (4, 4)])
def test_converted_model_computes_the_original(tmp_path, patch, out_channels):
    w = checkpoint(patch, out_channels)
    torch.save(w, tmp_path / "dit.pt")
    model = read_facebook(tmp_path / "dit.pt")
    x, t, y = inputs(patch)
    got = model(x, timestep=t, class_labels=y).sample
    want = original(w, x, t, y, frequencies=127)
    assert got.shape == (3, out_channels, GRID * patch, GRID * patch)
    assert (got - want).norm() < 1e-4 * want.norm()
    # Timestep frequencies are diffusers' convention and the only difference: with the original's, all agrees again.
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    want = original(w, x, t, y, frequencies=128)
    assert (model(x, timestep=t, class_labels=y).sample - want).norm() < 1e-4 * want.norm()
    assert (got - want).norm() > 1e-3 * want.norm()


def test_each_block_gets_its_own_modulation(tmp_path):
    w = checkpoint(2, 8)
    torch.save(w, tmp_path / "dit.pt")
    model = read_facebook(tmp_path / "dit.pt")
    for n, block in enumerate(model.transformer_blocks):
        assert torch.equal(block.norm1.linear.weight, w[f"blocks.{n}.adaLN_modulation.1.weight"])
        assert torch.equal(block.norm1.linear.bias, w[f"blocks.{n}.adaLN_modulation.1.bias"])
    assert adapter_for(model).family == "dit"
    assert model.config.num_embeds_ada_norm == CLASSES
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])


@torch.no_grad()
def test_reads_wrappers_safetensors_and_dtypes_and_saves(tmp_path):
    w, other = checkpoint(2, 8), checkpoint(2, 8, seed=1)
    state = {"model": other, "ema": w, "opt": {"step": 3}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(state, tmp_path / "state.pt")
    save_file(w, tmp_path / "dit.safetensors")
    torch.save(w, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    x, t, y = inputs(2)
    models = [read_facebook(tmp_path / name) for name in ("state.pt", "dit.safetensors", "old.pt")]
    first, *rest = [model(x, timestep=t, class_labels=y).sample for model in models]
    assert all(torch.equal(first, out) for out in rest)
    models[0].save_pretrained(tmp_path / "saved")  # the blocks' embedders share no memory
    again = type(models[0]).from_pretrained(tmp_path / "saved")
    assert torch.equal(first, again(x, timestep=t, class_labels=y).sample)
    half = read_facebook(tmp_path / "state.pt", torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_unchanged_tensors_are_views_of_the_file(tmp_path):
    torch.save(checkpoint(2, 8), tmp_path / "dit.pt")
    block = read_facebook(tmp_path / "dit.pt").transformer_blocks[0]
    q, k = block.attn1.to_q.weight, block.attn1.to_k.weight
    assert k.data_ptr() - q.data_ptr() == 4 * WIDTH * WIDTH


def without(name):
    return lambda w: w.pop(name)


def replaced(name, *shape):
    return lambda w: w.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("blocks.1.attn.qkv.bias"), "blocks.1.attn.qkv.bias"),
        (without("pos_embed"), "original DiT"),
        (replaced("extra", 3), "'extra'"),
        (replaced("blocks.0.mlp.fc1.weight", 3, 384), "blocks.0.mlp.fc1.weight"),
        (replaced("x_embedder.proj.weight", 400, 4, 2, 2), "width 400"),
        (replaced("x_embedder.proj.weight", 384, 4, 3, 3), "x_embedder.proj.weight"),
        (replaced("pos_embed", 1, 15, 384), "pos_embed"),
        (replaced("pos_embed", 1, 16, 384), "sine-cosine"),
        (replaced("final_layer.linear.weight", 12, 384), "final_layer.linear.weight"),
        (replaced("blocks.5.mlp.fc1.weight", 3, 384), r"\[0, 1, 5\]"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, named):
    w = checkpoint(2, 8)
    change(w)
    torch.save(w, tmp_path / "dit.pt")
    with pytest.raises(BadModel, match=named) as caught:
        read_facebook(tmp_path / "dit.pt")
    assert str(tmp_path / "dit.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_of_code_is_refused_and_not_run(tmp_path, capsys):
    torch.save({"model": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(BadModel, match=re.escape(str(tmp_path / "bad.pt"))):
        read_facebook(tmp_path / "bad.pt")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello world, this is text", bytes(range(256)) * 9])
def test_garbage_is_named(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(BadModel, match=re.escape(str(tmp_path / "bad.pt"))):
        read_facebook(tmp_path / "bad.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = tmp_path / f"dit.{suffix}"
    w = checkpoint(2, 8)
    torch.save(w, path) if suffix == "pt" else save_file(w, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadModel, match=re.escape(str(path))):
        read_facebook(path)
