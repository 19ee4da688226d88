"""Train, export and judge the starter model: a small VAE of the same kind as Stable Diffusion's.

    python training/train_starter.py train    --photographs DIR --run DIR --minutes 30
    python training/train_starter.py export   --photographs DIR --run DIR --model DIR
    python training/train_starter.py evaluate --photographs DIR --model DIR
    python training/train_starter.py curve    --run DIR --picture PNG

`train` goes on where the run's checkpoint left off, and `export` writes the model as it stands then, so both
can be called at any time. The length of a run is a time, not a number of steps: its learning rate and its
crops follow the clock, and a slower machine takes fewer steps. So a seed fixes the order of the crops, but
two runs will not end in the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from crops import load_photographs, random_batch, square, to_pixels, to_tensor
from diffusers import AutoencoderKL
from muon import new_optimisers
from PIL import Image
from skimage.metrics import structural_similarity
from starter_model import new_model
from torch import Tensor, nn
from tqdm import tqdm

# Small crops first, because many cheap steps settle colours and edges; large ones last, because GroupNorm's
# statistics and attention's reach should end up as they are for whole pictures.
# (share of the run after which it begins, crop side, crops per step)
STAGES = ((0.0, 64, 8), (0.3, 96, 4), (0.65, 160, 2), (0.88, 256, 1))

LEARNING_RATE = 2.5e-3
WARM_UP = 0.02  # share of the run
KL_WEIGHT = 1e-6  # as in latent diffusion: keeps the latents from growing, too little to blur pictures
SPIKE_LIMIT = 12.0  # times the mean magnitude; ordinary features of photographs stay below
SPIKE_WEIGHT = 1e-3
SPIKES_FROM = 1 / 3  # share of the run; a run that forbade them from the start learned more slowly
EMA_DECAY = 0.998
CHECKPOINT_EVERY_S = 120.0
JUDGE_EVERY_S = 120.0


# ---------------------------------------------------------------- loss


def charbonnier(difference: Tensor, smooth: float = 0.02) -> Tensor:
    """Mean of |x|, rounded off near zero: less blur than a squared error, smoother than an absolute one."""
    return (difference.square() + smooth**2).sqrt().mean()


class Spikes:
    """Watches what goes into every GroupNorm of a model and says how far single values stick out.

    A norm that takes in one huge value divides all others by it. Nets learn to use that as a dial, a spot in
    a corner that shows in every picture. This makes it expensive.
    """

    def __init__(self, model: nn.Module) -> None:
        self.excesses: list[Tensor] = []
        for layer in model.modules():
            if isinstance(layer, nn.GroupNorm):
                layer.register_forward_pre_hook(lambda layer, inputs: self.look(inputs[0]))

    def look(self, features: Tensor) -> None:
        """Called by torch before every norm, with (B, C, H, W)."""
        size = features.abs().flatten(1)
        self.excesses.append(F.relu(size.amax(1) / size.mean(1) - SPIKE_LIMIT).mean())

    def collect(self) -> Tensor:
        """The excesses since the last call, added up."""
        total = torch.stack(self.excesses).sum()
        self.excesses = []
        return total


def reconstruction_loss(decoded: Tensor, original: Tensor) -> Tensor:
    """Pixels at three scales (the coarse ones settle colours early) and, a little, the steepness of edges."""
    difference = decoded - original
    coarse, coarser = F.avg_pool2d(difference, 4), F.avg_pool2d(difference, 16)
    loss = charbonnier(difference) + 0.5 * charbonnier(coarse) + 0.25 * charbonnier(coarser)
    edges = charbonnier(difference.diff(dim=-1)) + charbonnier(difference.diff(dim=-2))
    return loss + 0.1 * edges


# ---------------------------------------------------------------- training


def learning_rate_at(progress: float) -> float:
    """Share of the full learning rate: a short rise, then half a cosine down to nearly nothing."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def stage_at(progress: float) -> tuple[int, int]:
    """(crop side, crops per step) for this share of the run."""
    return next((side, count) for start, side, count in reversed(STAGES) if progress >= start)


class Run:
    """A training run: the model, its moving average, and everything needed to go on after an interruption."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.model = new_model()
        self.spikes = Spikes(self.model)
        self.average = new_model()
        self.average.load_state_dict(self.model.state_dict())
        self.optimisers = new_optimisers(self.model, LEARNING_RATE)
        self.full_rates = [optimiser.defaults["lr"] for optimiser in self.optimisers]
        self.rng = np.random.default_rng(seed)
        self.steps = 0
        self.trained_s = 0.0
        self.log: list[dict[str, float]] = []

    @property
    def checkpoint(self) -> Path:
        """The one file that a run consists of."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint whole or not at all: an export may be reading it."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "steps": self.steps,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "trained_s": self.trained_s,
            "log": self.log,
            "crops": self.rng.bit_generator.state,
            "noise": torch.get_rng_state(),
        }
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def load(self) -> None:
        """Take up the run where its checkpoint left it."""
        state = torch.load(self.checkpoint, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.steps, self.trained_s, self.log = state["steps"], state["trained_s"], state["log"]
        self.rng.bit_generator.state = state["crops"]
        torch.set_rng_state(state["noise"])

    def note(self, **numbers: float) -> None:
        """Add a line to the log."""
        self.log.append(dict(minutes=self.trained_s / 60, steps=self.steps, **numbers))

    def step(self, batch: Tensor, share: float, spike_weight: float) -> float:
        """One step at this share of the learning rate. Returns the reconstruction loss."""
        posterior = self.model.encode(batch).latent_dist
        # The decoder sees sampled latents, so that it forgives the small errors of float16 and bfloat16.
        loss = reconstruction_loss(self.model.decode(posterior.sample()).sample, batch)
        kl = posterior.kl().sum() / batch.numel()
        self.spikes.look(posterior.mean)
        (loss + KL_WEIGHT * kl + spike_weight * self.spikes.collect()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, full_rate in zip(self.optimisers, self.full_rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = full_rate * share
            optimiser.step()
            optimiser.zero_grad()
        self.steps += 1
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return loss.item()


def train(args: argparse.Namespace) -> None:
    """Train, or go on training, until the run is as old as it should get."""
    torch.set_num_threads(2)
    torch.manual_seed(args.seed)
    args.run.mkdir(parents=True, exist_ok=True)
    photographs = list(load_photographs(args.photographs / "train").values())
    held_out = load_photographs(args.photographs / "held-out")
    run = Run(args.run, args.seed)
    if run.checkpoint.exists():
        run.load()
    whole_s = args.minutes * 60
    saved_s, judged_s = run.trained_s, run.trained_s
    losses = []
    bar = tqdm(total=round(whole_s), initial=round(run.trained_s), unit="s", mininterval=10)
    while run.trained_s < whole_s:
        began = time.perf_counter()
        progress = run.trained_s / whole_s
        batch = random_batch(photographs, *stage_at(progress), run.rng)
        spike_weight = SPIKE_WEIGHT if progress >= SPIKES_FROM else 0.0
        losses.append(run.step(batch, learning_rate_at(progress), spike_weight))
        run.trained_s += time.perf_counter() - began
        bar.update(round(run.trained_s) - bar.n)
        if run.trained_s - judged_s > JUDGE_EVERY_S or run.trained_s >= whole_s:
            judged_s = run.trained_s
            verdicts = [judge(run.average, name, picture, 256) for name, picture in held_out.items()]
            run.note(loss=float(np.mean(losses)), psnr=float(np.mean([verdict.psnr for verdict in verdicts])))
            bar.write(json.dumps(run.log[-1]))
            losses = []
        if run.trained_s - saved_s > CHECKPOINT_EVERY_S or run.trained_s >= whole_s:
            saved_s = run.trained_s
            run.save()


# ---------------------------------------------------------------- export


@torch.no_grad()
def scaling_factor(model: AutoencoderKL, photographs: dict[str, np.ndarray]) -> float:
    """1 / standard deviation of the latents of the training photographs, whole, at 256x256."""
    latents = [model.encode(to_tensor(square(p, 256))).latent_dist.mode() for p in photographs.values()]
    return 1 / torch.cat(latents).std().item()


def export(args: argparse.Namespace) -> None:
    """Write the run's averaged model as diffusers does, with float16 weights."""
    torch.set_num_threads(2)
    model = load_average(args.run)
    factor = scaling_factor(model, load_photographs(args.photographs / "train"))
    model.register_to_config(scaling_factor=round(factor, 4))
    model.half().save_pretrained(args.model)
    config_path = args.model / "config.json"
    config = json.loads(config_path.read_text())
    config.pop("_name_or_path", None)  # where it lay on the machine that made it is nobody's business
    config_path.write_text(json.dumps(config, indent=2) + "\n")
    weights = args.model / "diffusion_pytorch_model.safetensors"
    print(f"{args.model}: {weights.stat().st_size / 1e6:.2f} MB, scaling_factor {config['scaling_factor']}")


def load_average(run: Path) -> AutoencoderKL:
    """The averaged model of a run's checkpoint, ready to be used."""
    model = new_model()
    model.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=False)["average"])
    return model.eval()


# ---------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Verdict:
    """How one held-out picture came back."""

    name: str
    psnr: float  # dB, over uint8 RGB
    ssim: float
    original: np.ndarray  # uint8 (H, W, 3)
    returned: np.ndarray


@torch.no_grad()
def judge(model: AutoencoderKL, name: str, photograph: np.ndarray, side: int) -> Verdict:
    """Encode and decode one picture at side x side, in the model's own precision."""
    picture = square(photograph, side)
    original = np.asarray(picture)
    latents = model.encode(to_tensor(picture).to(model.dtype)).latent_dist.mode()
    decoded = model.decode(latents).sample
    if not decoded.isfinite().all():
        raise ArithmeticError(f"{name} at {side}x{side} in {model.dtype} came back with infinities or NaN")
    returned = to_pixels(decoded)
    error = np.mean((original.astype(np.float64) - returned) ** 2)
    similarity = structural_similarity(original, returned, channel_axis=2, data_range=255)
    return Verdict(name, 10 * math.log10(255**2 / error), float(similarity), original, returned)


class LargestActivation:
    """Watches every layer of a model and keeps the largest magnitude any of them put out."""

    def __init__(self, model: nn.Module) -> None:
        self.value, self.where = 0.0, ""
        for name, layer in model.named_modules():
            if not list(layer.children()):
                layer.register_forward_hook(partial(self.look, name))

    def look(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Called by torch after every layer."""
        largest = output.abs().max().item()
        if largest > self.value:
            self.value, self.where = largest, name


def write_sheet(verdicts: list[Verdict], path: Path, columns: int = 3) -> None:
    """Original and reconstruction side by side, picture after picture."""
    pairs = [np.concatenate([verdict.original, verdict.returned], axis=1) for verdict in verdicts]
    pairs += [np.full_like(pairs[0], 255)] * (-len(pairs) % columns)
    rows = [np.concatenate(pairs[start : start + columns], axis=1) for start in range(0, len(pairs), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def evaluate(args: argparse.Namespace) -> None:
    """Print a table of the held-out pictures, in Markdown."""
    torch.set_num_threads(2)
    if args.run:
        model = load_average(args.run)
    else:
        model = AutoencoderKL.from_pretrained(args.model, torch_dtype=getattr(torch, args.dtype)).eval()
    activation = LargestActivation(model)
    photographs = load_photographs(args.photographs / "held-out")
    tables = []
    for side in args.sides:
        progress = tqdm(photographs.items(), leave=False, desc=f"{side}x{side}")
        tables.append([judge(model, name, picture, side) for name, picture in progress])
        if args.sheet:
            write_sheet(tables[-1], args.sheet.with_stem(f"{args.sheet.stem}-{side}"))
    print("| picture |" + "".join(f" PSNR {side} | SSIM {side} |" for side in args.sides))
    print("|---|" + "---:|" * 2 * len(args.sides))
    for row in zip(*tables, strict=True):
        print(f"| {row[0].name} |" + "".join(f" {v.psnr:.2f} | {v.ssim:.3f} |" for v in row))
    means = [(np.mean([v.psnr for v in table]), np.mean([v.ssim for v in table])) for table in tables]
    print("| **mean** |" + "".join(f" **{psnr:.2f}** | **{ssim:.3f}** |" for psnr, ssim in means))
    print(f"\n{model.dtype}; largest activation {activation.value:.0f} in {activation.where}")


def curve(args: argparse.Namespace) -> None:
    """Draw how the loss and the held-out PSNR went over a run."""
    from matplotlib.figure import Figure  # only this verb needs it

    log = torch.load(args.run / "checkpoint.pt", weights_only=False)["log"]
    minutes = [entry["minutes"] for entry in log]
    figure = Figure(figsize=(6, 3), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    left.plot(minutes, [entry["psnr"] for entry in log], color="tab:blue")
    right.plot(minutes, [entry["loss"] for entry in log], color="tab:orange")
    left.set_xlabel("minutes of training")
    left.set_ylabel("held-out PSNR at 256x256, dB", color="tab:blue")
    right.set_ylabel("training loss", color="tab:orange")
    figure.savefig(args.picture, dpi=110)


def main() -> None:
    """Read the verb and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add_verb(do: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        verb = verbs.add_parser(do.__name__, help=do.__doc__, description=do.__doc__)
        verb.set_defaults(do=do)
        return verb

    verb = add_verb(train)
    verb.add_argument("--photographs", type=Path, required=True, help="what photographs.py wrote")
    verb.add_argument("--run", type=Path, required=True, help="folder for the checkpoint")
    verb.add_argument("--minutes", type=float, default=30, help="of training, interruptions not counted")
    verb.add_argument("--seed", type=int, default=0)
    verb = add_verb(export)
    verb.add_argument("--photographs", type=Path, required=True, help="what photographs.py wrote")
    verb.add_argument("--run", type=Path, required=True, help="folder of the checkpoint")
    verb.add_argument("--model", type=Path, required=True, help="folder to write the model to")
    verb = add_verb(evaluate)
    verb.add_argument("--photographs", type=Path, required=True, help="what photographs.py wrote")
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, help="an exported model")
    which.add_argument("--run", type=Path, help="a run, with its weights still in float32")
    dtypes = ("float32", "bfloat16", "float16")
    verb.add_argument("--dtype", choices=dtypes, default="float32", help="to compute in, with --model")
    verb.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    verb.add_argument("--sheet", type=Path, help="PNG to draw the pictures to, side by side")
    verb = add_verb(curve)
    verb.add_argument("--run", type=Path, required=True, help="folder of the checkpoint")
    verb.add_argument("--picture", type=Path, required=True, help="PNG to draw")
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
