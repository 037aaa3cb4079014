"""Turn a training snapshot into the pipeline folder that ships: the moving average in float16, and provenance.json."""

import argparse
import json
import platform
from pathlib import Path

import diffusers
import torch
from data import load
from diffusers import DDIMScheduler, DiTTransformer2DModel

from dither.zoo import PixelDiTPipeline

LIMITS = {
    "digits": "Trained on about 1,400 images of 8x8 pixels, for tests; nobody checked how closely samples repeat them.",
    "fashion_mnist": "A small model trained for minutes on two CPU cores: sneakers, ankle boots and shirts are often not"
    " recognised by the classifier, and guidance raises the Frechet distance (it brightens whole pictures at high noise):"
    " keep it at 1.5 or less.",
}


def scheduler() -> DDIMScheduler:
    """The sampler that ships: DDIM (arXiv 2010.02502) on the training schedule, ending at t = 0."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="linear", clip_sample=True, timestep_spacing="trailing"
    )


def export(snapshot: Path, data_name: str, out: Path) -> None:
    state = torch.load(snapshot, weights_only=True)
    transformer = DiTTransformer2DModel(**state["config"])
    transformer.load_state_dict(state["ema"])
    PixelDiTPipeline(transformer.eval().half(), scheduler()).save_pretrained(out)
    (out / "provenance.json").write_text(json.dumps(provenance(state, data_name), indent=1) + "\n")


def provenance(state: dict, data_name: str) -> dict:
    data = load(data_name)
    every = max(1, len(state["losses"]) // 40)
    return {
        "data": data.source,
        "data_licence": data.licence,
        "images": len(data.train.images),
        "commands": [{"from_step": step, "command": command(args)} for step, args in state["history"]],
        "started_from": STARTS.get(data.name, "random initialisation"),
        "steps": state["step"],
        "minutes": round(state["seconds"] / 60, 1),
        "seed": state["history"][0][1]["seed"],
        "label_drop": "once per sample, all blocks alike, p = 0.1; null label = number of classes",
        "weights": "exponential moving average, float16",
        "loss": dict(state["losses"][::-every][::-1]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "known_limits": LIMITS.get(data.name, ""),
    }


def command(args: dict) -> str:
    """The command that trained it, without the folders of the machine where it ran."""
    words = ["python train.py"]
    for name, value in args.items():
        if value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        shown = Path(value).name if isinstance(value, str) else value
        words.append(flag if value is True else f"{flag} {shown}")
    return " ".join(words)


STARTS = {
    "fashion_mnist": "a first model of the same size: 7,451 steps of 64 images in 62 minutes on two CPU cores, in which"
    " each block dropped labels by itself",
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("snapshot", type=Path)
    p.add_argument("--data", required=True)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    export(a.snapshot, a.data, a.out)


if __name__ == "__main__":
    main()
