"""Train and export the starter's text-to-image pipeline: a tiny Stable Diffusion for drawn scenes.

    python training/train_pipeline.py train  --run DIR
    python training/train_pipeline.py export --run DIR --model DIR

A run is a number of steps and a seed, and every step draws its batch from the two: `train` goes on where the
run's checkpoint left off and ends in the same weights. `export` can be called while it trains.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from muon import new_optimisers
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vocabulary import LENGTH, new_tokenizer

from hybridge.models.catalogue import STARTER
from hybridge.scenes import SIDE, Scene, captions, check, draw, held_out, is_held_out, random_scene
from hybridge.scenes.captions import WORDS
from hybridge.scenes.drawing import boxes
from hybridge.scenes.scene import COLOURS, GROUNDS, SHAPES, TIMES

SCENES = 14_000
BATCH = 32
TEXT_BATCH = 64
TEXT_STEPS = 600
TEXT_LEARNING_RATE = 2e-3
LEARNING_RATE = 2e-3
TEXT_SHARE = 0.2  # of the learning rate, once the text encoder is trained with the rest
WARM_UP = 100  # steps
COOL_DOWN = 0.6  # the share of the run after which the learning rate falls
WITHOUT_CAPTION = 0.1
EMA_DECAY = 0.998
CHECKPOINT_EVERY = 100
JUDGE_EVERY = 500
JUDGED = 48  # captions
GUIDANCE = 3.0
SLOTS_WEIGHT = 0.02
WIDTH = 128  # of the text encoder

# ---------------------------------------------------------------- parts


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text model, two layers deep."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Two levels. The whole caption reaches every block beside the time, its words the inner ones."""
    return UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=(64, 80),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=5,  # heads: in Stable Diffusion's configs the name means their number
        use_linear_projection=True,
        time_embedding_dim=128,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
    )


def new_scheduler() -> DDIMScheduler:
    """Noise to the very end: night and day differ in the mean of the whole picture, which must be made, too."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


class Slots(nn.Module):
    """Reads a scene off the last four tokens' states: the backdrop, and one thing each.

    It is trained with the text encoder and thrown away. It makes the padding hold, in places that the UNet can
    rely on, what the words before it mean.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backdrop = nn.Linear(WIDTH, len(TIMES) + len(GROUNDS))
        self.thing = nn.Linear(WIDTH, len(COLOURS) + len(SHAPES) + 2 + 4)

    def loss(self, states: Tensor, facts: Tensor) -> Tensor:
        """Of states (N, LENGTH, WIDTH) and facts (N, 26 or so) as :func:`facts_of` makes them."""
        backdrop, things = self.backdrop(states[:, -4]), self.thing(states[:, -3:])
        time, ground = facts[:, 0].long(), facts[:, 1].long()
        loss = F.cross_entropy(backdrop[:, :2], time) + F.cross_entropy(backdrop[:, 2:], ground)
        told = facts[:, 2:].reshape(-1, 3, 7)
        is_there = told[:, :, 0]
        predicted = things.flatten(0, 1)
        told, is_there = told.flatten(0, 1), is_there.flatten()
        loss = loss + F.binary_cross_entropy_with_logits(predicted[:, 0], is_there)

        def mean(each: Tensor) -> Tensor:
            return (each * is_there).sum() / is_there.sum()

        loss = loss + mean(F.cross_entropy(predicted[:, 6:13], told[:, 1].long(), reduction="none"))
        loss = loss + mean(F.cross_entropy(predicted[:, 13:18], told[:, 2].long(), reduction="none"))
        loss = loss + mean(F.binary_cross_entropy_with_logits(predicted[:, 1], told[:, 3], reduction="none"))
        return loss + 4 * mean((predicted[:, 2:5] - told[:, 4:7]).square().sum(1))


def facts_of(scene: Scene) -> list[float]:
    """Time and ground; of three things: whether it is there, colour, shape, stripes, centre and width."""
    facts: list[float] = [TIMES.index(scene.time), GROUNDS.index(scene.ground)]
    for thing, (x, y, width) in zip(scene.things, boxes(scene, None), strict=True):
        kind = list(COLOURS).index(thing.colour), SHAPES.index(thing.shape), thing.is_striped
        facts += [1, *kind, 2 * x / SIDE - 1, 2 * y / SIDE - 1, 2 * width / SIDE - 1]
    return facts + [0.0] * (2 + 3 * 7 - len(facts))


# ---------------------------------------------------------------- data


class Pictures:
    """Scenes to train on and their latents, drawn and encoded once for a run's folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        rng = random.Random(seed)
        self.scenes: list[Scene] = []
        while len(self.scenes) < SCENES:
            scene = random_scene(rng)
            if not is_held_out(scene):
                self.scenes.append(scene)
        self.facts = torch.tensor([facts_of(scene) for scene in self.scenes])
        self._path, self._seed = folder / "latents.pt", seed
        self.latents = torch.empty(0)

    def load(self) -> None:
        """The latents, once they are written."""
        self.latents = torch.load(self._path, weights_only=True)

    @torch.no_grad()
    def write(self, vae: AutoencoderKL) -> None:
        """Draw and encode all scenes, unless that was done before."""
        if self._path.exists():
            return
        found = []
        for start in tqdm(range(0, SCENES, 64), desc="drawing", mininterval=10):
            scenes = enumerate(self.scenes[start : start + 64], start)
            pixels = np.stack([draw(s, random.Random(f"{self._seed} {i}")) for i, s in scenes])
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.autocast("cpu", torch.bfloat16):
                latents = vae.encode(batch.to(memory_format=torch.channels_last)).latent_dist.mode()
            found.append(latents.half() * vae.config.scaling_factor)
        torch.save(torch.cat(found), self._path)

    def batch(self, rng: random.Random, count: int) -> tuple[list[int], list[str]]:
        """Indices of scenes, and a caption of each."""
        chosen = [rng.randrange(SCENES) for _ in range(count)]
        return chosen, [captions(self.scenes[index], rng) for index in chosen]


# ---------------------------------------------------------------- training


class Run:
    """A training run and what is needed to go on after an interruption."""

    def __init__(self, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.folder, self.seed, self.steps = folder, seed, 0
        self.tokenizer = new_tokenizer(WORDS)
        self.scheduler = new_scheduler()
        self.slots = Slots()
        self.text_encoder, self.unet = (
            new_text_encoder(self.tokenizer),
            new_unet().to(memory_format=torch.channels_last),
        )
        self.average_text, self.average_unet = new_text_encoder(self.tokenizer).eval(), new_unet().eval()
        self.optimisers = [
            *new_optimisers(self.unet, LEARNING_RATE),
            *new_optimisers(nn.ModuleList([self.text_encoder, self.slots]), LEARNING_RATE * TEXT_SHARE),
        ]
        self.full_rates = [optimiser.defaults["lr"] for optimiser in self.optimisers]
        self.log: list[dict[str, float]] = []

    @property
    def checkpoint(self) -> Path:
        """The file that a run consists of, beside its latents."""
        return self.folder / "checkpoint.pt"

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "text_encoder": self.text_encoder,
            "unet": self.unet,
            "average_text": self.average_text,
            "average_unet": self.average_unet,
            "slots": self.slots,
        }

    def save(self) -> None:
        """Write the checkpoint whole or not at all: an export may be reading it."""
        state = {
            "modules": {name: module.state_dict() for name, module in self._modules().items()},
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "steps": self.steps,
            "log": self.log,
        }
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def load(self) -> None:
        """Take up the run where its checkpoint left it."""
        state = torch.load(self.checkpoint, weights_only=True)
        for name, module in self._modules().items():
            module.load_state_dict(state["modules"][name])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.steps, self.log = state["steps"], state["log"]

    def tokens(self, texts: list[str]) -> Tensor:
        """(N, LENGTH), padded to the end as the pipeline does it."""
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        ids: Tensor = encoded.input_ids
        return ids

    def teach_text(self, pictures: Pictures) -> None:
        """The text encoder alone, until it can say what a caption's scene is."""
        parts = nn.ModuleList([self.text_encoder, self.slots])
        optimisers = new_optimisers(parts, TEXT_LEARNING_RATE)
        rates = [optimiser.defaults["lr"] for optimiser in optimisers]
        bar = tqdm(range(TEXT_STEPS), desc="text", mininterval=10)
        for step in bar:
            chosen, texts = pictures.batch(random.Random(f"text {self.seed} {step}"), TEXT_BATCH)
            states = self.text_encoder(self.tokens(texts)).last_hidden_state
            loss = self.slots.loss(states, pictures.facts[chosen])
            loss.backward()
            descend(optimisers, rates, min(1, step / 50, (TEXT_STEPS - step) / (TEXT_STEPS / 2)), parts)
            if step % 100 == 99:
                bar.write(f"text {step + 1}: {loss.item():.4f}")
        self.average_text.load_state_dict(self.text_encoder.state_dict())
        self.average_unet.load_state_dict(self.unet.state_dict())

    def step(self, pictures: Pictures, progress: float, part: slice) -> float:
        """One step, of which this process does a part of the batch; returns the loss of the UNet there."""
        rng = random.Random(f"{self.seed} {self.steps}")
        noise_rng = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps)
        chosen, texts = pictures.batch(rng, BATCH)
        heard = [text if rng.random() >= WITHOUT_CAPTION else "" for text in texts]
        latents = pictures.latents[chosen].float()
        noise = torch.randn(latents.shape, generator=noise_rng)
        # One time of each equal part of the scale: a batch's loss depends less on luck.
        shares = (torch.arange(BATCH) + torch.rand(BATCH, generator=noise_rng)) / BATCH
        times = (shares * self.scheduler.config.num_train_timesteps).long()
        noisy = self.scheduler.add_noise(latents, noise, times).to(memory_format=torch.channels_last)
        velocity = self.scheduler.get_velocity(latents, noise, times)
        heard, facts = heard[part], pictures.facts[chosen][part]
        states = self.text_encoder(self.tokens(heard)).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.unet(noisy[part], times[part], states).sample
        loss = F.mse_loss(predicted.float(), velocity[part])
        has_caption = torch.tensor([bool(text) for text in heard])
        aside = self.slots.loss(states[has_caption], facts[has_caption])
        (loss + SLOTS_WEIGHT * aside).backward()
        self._share_gradients()
        rate = min(1, (self.steps + 1) / WARM_UP, max(0.01, (1 - progress) / (1 - COOL_DOWN)))
        descend(self.optimisers, self.full_rates, rate, self.unet)
        self.steps += 1
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for average, current in ((self.average_unet, self.unet), (self.average_text, self.text_encoder)):
                torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)
        return loss.item()

    def _share_gradients(self) -> None:
        """Replace every gradient by its mean over all processes."""
        if not dist.is_initialized():
            return
        parameters = [p for module in (self.unet, self.text_encoder, self.slots) for p in module.parameters()]
        flat = torch.cat([p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(mean.view_as(parameter))

    def pipeline(self, vae: AutoencoderKL) -> StableDiffusionPipeline:
        """The averaged weights as a pipeline."""
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=self.average_text,
            tokenizer=self.tokenizer,
            unet=self.average_unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe


def descend(optimisers: list[torch.optim.Optimizer], rates: list[float], share: float, module: nn.Module) -> None:
    """A step of every optimiser at this share of its learning rate."""
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimiser, full_rate in zip(optimisers, rates, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = full_rate * share
        optimiser.step()
        optimiser.zero_grad()


def judge(run: Run, vae: AutoencoderKL, sheet: Path) -> dict[str, float]:
    """Shares of held-out captions, and of their things' colours and shapes, that come out right."""
    pipe = run.pipeline(vae)
    asked = held_out(JUDGED)
    pictures: list[Image.Image] = []
    for start in range(0, JUDGED, 16):
        generator = torch.Generator().manual_seed(start)
        texts = [text for _, text in asked[start : start + 16]]
        pictures += pipe(texts, num_inference_steps=20, guidance_scale=GUIDANCE, generator=generator).images
    found = [check(scene, picture) for (scene, _), picture in zip(asked, pictures, strict=True)]
    things = sum(len(scene.things) for scene, _ in asked)
    canvas = Image.new("RGB", (8 * SIDE, JUDGED // 8 * SIDE))
    for index, picture in enumerate(pictures):
        canvas.paste(picture, (index % 8 * SIDE, index // 8 * SIDE))
    canvas.save(sheet)
    return {
        "captions": sum(finding.is_right for finding in found) / JUDGED,
        "colours": sum(finding.colours_right for finding in found) / things,
        "shapes": sum(finding.shapes_right for finding in found) / things,
    }


def train(args: argparse.Namespace) -> None:
    """Train, or go on training, until the run has its steps."""
    args.run.mkdir(parents=True, exist_ok=True)
    # Processes of one thread each, which share gradients once a step: threads wait for each other in every layer.
    (args.run / "rendezvous").unlink(missing_ok=True)
    processes.spawn(train_part, (args,), nprocs=args.processes)


def train_part(rank: int, args: argparse.Namespace) -> None:
    """What one of the processes does: its part of every batch; the first one also judges and saves."""
    torch.set_num_threads(1)
    meeting = f"file://{(args.run / 'rendezvous').resolve()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.processes)
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval().requires_grad_(False)
    run, pictures = Run(args.run, args.seed), Pictures(args.run, args.seed)
    if rank == args.processes - 1:
        pictures.write(vae)
    if rank == 0 and not run.checkpoint.exists():
        run.teach_text(pictures)
        run.save()
    dist.barrier()
    pictures.load()
    run.load()
    part = slice(rank * BATCH // args.processes, (rank + 1) * BATCH // args.processes)
    began, losses = time.perf_counter(), []
    bar = tqdm(total=args.steps, initial=run.steps, mininterval=20, disable=rank > 0)
    while run.steps < args.steps:
        losses.append(run.step(pictures, run.steps / args.steps, part))
        bar.update()
        is_last = run.steps == args.steps
        if rank > 0:
            continue
        if run.steps % 100 == 0 or is_last:
            bar.write(f"{run.steps}: loss {np.mean(losses[-100:]):.4f}, {time.perf_counter() - began:.0f} s")
        if run.steps % JUDGE_EVERY == 0 or is_last:
            shares = judge(run, vae, args.run / f"sheet-{run.steps}.png")
            run.log.append({"steps": run.steps, "loss": float(np.mean(losses)), **shares})
            bar.write(json.dumps(run.log[-1]))
            losses = []
        if run.steps % CHECKPOINT_EVERY == 0 or is_last:
            run.save()
    dist.destroy_process_group()


# ---------------------------------------------------------------- export


def export(args: argparse.Namespace) -> None:
    """Write the run's averaged text encoder and UNet, in float16, and the rest of the pipeline, beside its VAE."""
    run = Run(args.run, 0)
    run.load()
    pipe = run.pipeline(AutoencoderKL.from_pretrained(args.vae)).to(torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        write_old_tokenizer(Path(folder) / "tokenizer")
        shutil.rmtree(Path(folder) / "vae")  # it is not trained here
        shutil.copytree(folder, args.model, dirs_exist_ok=True)
    for path in args.model.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.suffix == ".json":
            config = json.loads(path.read_text(encoding="utf-8"))
            if config.pop("_name_or_path", None):  # where it lay on the machine that made it is nobody's business
                path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in args.model.rglob("*") if path.is_file())
    print(f"{args.model}: {size / 1e6:.2f} MB after {run.steps} steps")


def write_old_tokenizer(folder: Path) -> None:
    """The files that transformers 4 reads; the newer one has all in ``tokenizer.json``."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    (folder / "merges.txt").write_text(f"{merges}\n", encoding="utf-8")


def main() -> None:
    """Read the verb and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add_verb(do: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        verb = verbs.add_parser(do.__name__, help=do.__doc__, description=do.__doc__)
        verb.set_defaults(do=do)
        verb.add_argument("--run", type=Path, required=True, help="folder for the checkpoint")
        verb.add_argument("--vae", type=Path, default=STARTER / "vae", help="folder of the VAE")
        return verb

    verb = add_verb(train)
    verb.add_argument("--steps", type=int, default=4500, help="default: %(default)s, as the shipped run")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--processes", type=int, default=2, help="of one thread each")
    verb = add_verb(export)
    verb.add_argument("--model", type=Path, required=True, help="folder to write the pipeline to")
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
