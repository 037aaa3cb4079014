"""Train a small class-conditional DiT (Peebles & Xie, arXiv 2212.09748) in pixel space.

It predicts noise (Ho et al., arXiv 2006.11239):

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,    loss = w_t |model(x_t, t, y) - e|^2,    w_t = SNR_t^(-1/2)

with SNR_t = a_t / (1 - a_t). This weight lies halfway between the loss on the noise (w = 1), which hardly sees shapes, and
the loss on the image (w = 1 / SNR); it is P2 weighting (arXiv 2204.00227) with k = 0. ``--min-snr`` takes that of Min-SNR
instead (arXiv 2303.09556): min(SNR_t, g) / SNR_t.

Classifier-free guidance (arXiv 2207.12598) needs a null class: here a sample's label becomes the null label once, for
all blocks alike, with probability 0.1. diffusers gives every block a label embedder that drops labels by itself in
training mode, so the model stays in eval mode throughout.

Progress is kept in ``RUN/snapshot.pt`` (replaced atomically); ``--resume`` continues from it; ``export.py`` makes the
pipeline folder from it.
"""

import argparse
import copy
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Dataset, load, to_model
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch import Tensor

LABEL_DROP = 0.1


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--data", required=True, help="'digits' or the path of an .npz with xtr, ytr, xte, yte")
    p.add_argument("--run", type=Path, required=True, help="folder for the snapshot")
    p.add_argument("--init", type=Path, help="a transformer folder to start from")
    p.add_argument("--resume", action="store_true", help="continue from the snapshot in --run")
    p.add_argument("--minutes", type=float, help="length by the clock; give this or --steps")
    p.add_argument("--steps", type=int, help="length in steps")
    p.add_argument("--hidden", type=int, default=192)
    p.add_argument("--depth", type=int, default=6)
    p.add_argument("--patch", type=int, default=4)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=6e-4)
    p.add_argument("--ema", type=float, default=0.9995)
    p.add_argument("--min-snr", type=float, help="weight the loss by min(SNR, this) / SNR")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--snapshot-minutes", type=float, default=4.0)
    a = p.parse_args()
    if (a.minutes is None) == (a.steps is None):
        p.error("give exactly one of --minutes and --steps")
    return a


def build(data: Dataset, a: argparse.Namespace) -> DiTTransformer2DModel:
    """A DiT with adaLN-Zero initialisation: every block starts as the identity and the output as zero."""
    size, channels = data.train.images.shape[1], data.train.images.shape[3]
    model = DiTTransformer2DModel(
        sample_size=size,
        patch_size=a.patch,
        in_channels=channels,
        out_channels=channels,
        num_layers=a.depth,
        attention_head_dim=64,
        num_attention_heads=a.hidden // 64,
        num_embeds_ada_norm=data.classes,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
        attention_bias=True,
    )
    for layer in [b.norm1.linear for b in model.transformer_blocks] + [model.proj_out_1, model.proj_out_2]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for block in model.transformer_blocks:
        torch.nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    return model


def save_atomically(state: dict[str, object], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


class Run:
    """All that training changes: the model, its moving average, the optimizer, the random numbers, the clock."""

    def __init__(self, a: argparse.Namespace, data: Dataset):
        self.args = a
        self.model = DiTTransformer2DModel.from_pretrained(a.init) if a.init else build(data, a)
        self.model.float().eval()  # labels are dropped in loss(); see the module docstring
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=a.lr, weight_decay=0.0, betas=(0.9, 0.99))
        self.generator = torch.Generator().manual_seed(a.seed)
        self.step, self.seconds, self.smooth, self.losses = 0, 0.0, None, []
        self.history: list[list] = []  # [step at which it began, its arguments] of every start
        if a.resume:
            self.restore(torch.load(a.run / "snapshot.pt", weights_only=True))
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(a).items()}
        self.history = [*self.history, [self.step, arguments]]

    def restore(self, s: dict) -> None:
        self.model.load_state_dict(s["model"])
        self.ema.load_state_dict(s["ema"])
        self.optimizer.load_state_dict(s["optimizer"])
        self.generator.set_state(s["generator"])
        self.step, self.seconds, self.smooth, self.losses = s["step"], s["seconds"], s["smooth"], s["losses"]
        self.history = s["history"]

    def snapshot(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "config": {k: v for k, v in self.model.config.items() if not k.startswith("_")},
            **{k: getattr(self, k) for k in ("step", "seconds", "smooth", "losses", "history")},
        }
        save_atomically(state, self.args.run / "snapshot.pt")

    @property
    def progress(self) -> float:
        a = self.args
        return self.step / a.steps if a.steps else self.seconds / (60 * a.minutes)

    def loss(self, ddpm: DDPMScheduler, x: Tensor, y: Tensor) -> Tensor:
        """The weighted loss of one batch ``x`` (B, C, H, W) with labels ``y`` (B,); scalar."""
        g, n, times = self.generator, len(x), ddpm.config.num_train_timesteps
        noise = torch.randn(x.shape, generator=g)
        # One uniform draw, stratified over the batch: less variance than n independent ones.
        t = (((torch.rand(1, generator=g) + torch.arange(n) / n) % 1) * times).long()  # (B,)
        y = torch.where(torch.rand(n, generator=g) < LABEL_DROP, self.model.config.num_embeds_ada_norm, y)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
            out = self.model(ddpm.add_noise(x, noise, t), timestep=t, class_labels=y).sample
        snr = ddpm.alphas_cumprod[t] / (1 - ddpm.alphas_cumprod[t])  # (B,)
        weight = snr**-0.5 if self.args.min_snr is None else (self.args.min_snr / snr).clamp(max=1)
        return (F.mse_loss(out.float(), noise, reduction="none").mean((1, 2, 3)) * weight).mean()

    def advance(self, ddpm: DDPMScheduler, x: Tensor, y: Tensor) -> None:
        """One optimizer step on one random batch, and one step of the moving average."""
        a = self.args
        began = time.monotonic()
        lr = a.lr * min(1, (self.step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        index = torch.randint(len(x), (a.batch,), generator=self.generator)
        loss = self.loss(ddpm, x[index], y[index])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(a.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        value = loss.item()
        self.smooth = value if self.smooth is None else 0.99 * self.smooth + 0.01 * value
        self.step += 1
        self.seconds += time.monotonic() - began


def main() -> None:
    a = parse()
    torch.set_num_threads(a.threads)
    torch.backends.cuda.enable_flash_sdp(False)  # on CPUs too; at these lengths plain attention trains a third faster
    torch.manual_seed(a.seed)
    a.run.mkdir(parents=True, exist_ok=True)
    data = load(a.data)
    x, y = to_model(data.train.images), torch.from_numpy(data.train.labels)
    ddpm = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    run = Run(a, data)
    print(
        f"{sum(p.numel() for p in run.model.parameters()) / 1e6:.2f} M parameters, {len(x)} images, from step {run.step}",
        flush=True,
    )
    saved = run.seconds
    while run.progress < 1:
        run.advance(ddpm, x, y)
        if run.step % 100 == 0:
            run.losses.append([run.step, round(run.smooth, 5)])
            rate = run.step / run.seconds
            print(
                f"{run.step} {run.seconds / 60:.1f} min  loss {run.smooth:.4f}  {rate:.2f} steps/s  {run.progress:.0%}",
                flush=True,
            )
        if run.seconds - saved > 60 * a.snapshot_minutes:
            run.snapshot()
            saved = run.seconds
    run.snapshot()
    print(f"done: {run.step} steps, {run.seconds / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
