"""The scripts that retrain the zoo: they run, resume where they stopped, export, and drop labels once per sample."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from dither import zoo

SCRIPTS = Path(__file__).parents[2] / "training"
SMALL = "--data digits --hidden 64 --depth 2 --patch 2 --batch 8 --threads 1"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Imports a script with a command line; afterwards torch's global settings and the imports are as before."""
    pytest.importorskip("sklearn")
    threads, flash, rng = torch.get_num_threads(), torch.backends.cuda.flash_sdp_enabled(), torch.get_rng_state()
    monkeypatch.syspath_prepend(SCRIPTS)

    def load(name: str, arguments: str) -> ModuleType:
        monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
        return importlib.import_module(name)

    yield load
    for name in ("data", "train", "export"):
        sys.modules.pop(name, None)
    torch.set_num_threads(threads)
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.set_rng_state(rng)


def test_a_resumed_run_ends_like_an_unbroken_one_and_exports(script: Callable, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    script("train", f"{SMALL} --run {whole} --steps 4").main()
    # The schedule follows --steps, so the first half is cut off rather than shortened.
    half = script("train", f"{SMALL} --run {broken} --steps 4")
    a = half.parse()
    broken.mkdir()
    torch.manual_seed(a.seed)
    digits = half.load("digits")
    run = half.Run(a, digits)
    ddpm = half.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    for _ in range(2):
        run.advance(ddpm, half.to_model(digits.train.images), torch.from_numpy(digits.train.labels))
    run.snapshot()
    script("train", f"{SMALL} --run {broken} --steps 4 --resume").main()
    one, two = (torch.load(folder / "snapshot.pt", weights_only=True) for folder in (whole, broken))
    assert one["step"] == two["step"] == 4
    for key, value in one["ema"].items():
        torch.testing.assert_close(two["ema"][key], value, atol=1e-6, rtol=1e-5)
    script("export", "").export(whole / "snapshot.pt", "digits", tmp_path / "out")
    pipe = zoo.PixelDiTPipeline.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(
        pipe.transformer.proj_out_2.weight, one["ema"]["proj_out_2.weight"], atol=1e-3, rtol=1e-3
    )


def test_a_label_is_dropped_once_for_all_blocks(script: Callable, tmp_path: Path) -> None:
    train = script("train", f"{SMALL} --run {tmp_path} --steps 1")
    a = train.parse()
    digits = train.load("digits")
    run = train.Run(a, digits)
    seen: list[Tensor] = []
    for module in run.model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    n = 1000
    x, y = train.to_model(digits.train.images[:n]), torch.from_numpy(digits.train.labels[:n])
    with torch.no_grad():
        run.loss(train.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear"), x, y)
    assert len(seen) >= a.depth
    assert all(torch.equal(labels, seen[0]) for labels in seen)
    dropped = seen[0] != y
    assert 0.06 * n < dropped.sum() < 0.14 * n
    assert (seen[0][dropped] == 10).all()
