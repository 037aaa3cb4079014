"""Train the small classifier whose features measure Frechet distances, and store the statistics of real test images.

Trained on the training split with one-cycle AdamW, shifts of up to two pixels and label smoothing; accuracy and statistics
come from the test split only. Writes the ``features/`` folder described in ``dither.zoo.features``.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import Dataset, load, to_model
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from dither.zoo.features import FeatureConfig, FeatureModule, FeatureNetwork


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True, help="'digits' or the path of an .npz with xtr, ytr, xte, yte")
    p.add_argument("--out", type=Path, required=True, help="the features/ folder to write")
    p.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    p.add_argument("--features", type=int, default=64)
    p.add_argument("--epochs", type=int, default=6)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--shift", type=int, default=2, help="random shift in pixels")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args()


def shifted(x: Tensor, pixels: int) -> Tensor:
    """The batch (N, C, H, W) moved by one random offset, with black let in at the border."""
    dy, dx = torch.randint(-pixels, pixels + 1, (2,)).tolist()
    padded = F.pad(x, (pixels, pixels, pixels, pixels), value=-1.0)
    return padded[:, :, pixels + dy : pixels + dy + x.shape[2], pixels + dx : pixels + dx + x.shape[3]]


def train(data: Dataset, config: FeatureConfig, a: argparse.Namespace) -> FeatureModule:
    x, y = to_model(data.train.images), torch.from_numpy(data.train.labels)
    module = FeatureModule(config).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=a.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, a.lr, total_steps=a.epochs * (len(x) // a.batch))
    for epoch in range(a.epochs):
        total = 0.0
        for index in torch.randperm(len(x))[: len(x) // a.batch * a.batch].split(a.batch):
            _, logits = module(shifted(x[index], a.shift))
            loss = F.cross_entropy(logits, y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {a.epochs}: loss {total / (len(x) // a.batch):.4f}", flush=True)
    return module.eval()


def write(data: Dataset, config: FeatureConfig, module: FeatureModule, out: Path) -> float:
    """Stores network and statistics; returns the accuracy on the test split."""
    features, logits = FeatureNetwork(module)(data.test.images)
    accuracy = float((logits.argmax(1) == data.test.labels).mean())
    f = features.astype(np.float64)  # (N, D)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, out / "network.safetensors")
    facts = {"n": str(len(f)), "accuracy": repr(accuracy), "split": "test", "data": data.source}
    save_arrays({"mu": f.mean(0), "sigma": np.cov(f, rowvar=False)}, out / "real.safetensors", metadata=facts)
    return accuracy


def main() -> None:
    a = parse()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    data = load(a.data)
    config = FeatureConfig(data.train.images.shape[3], tuple(a.widths), a.features, data.classes)
    module = train(data, config, a)
    print(f"accuracy on {len(data.test.images)} test images: {write(data, config, module, a.out):.4f}")


if __name__ == "__main__":
    main()
