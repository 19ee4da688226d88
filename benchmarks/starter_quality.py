"""Does the picture show what was asked for?  The starter's pipeline on captions that it was never trained on.

Each way of denoising makes a picture of every caption, from the same noise, and the checker of hybridge.scenes,
which was not trained, looks at the pixels.  Printed are the shares of captions of which everything is right, of
things with the right colour, and of things with the right shape; and how often the whole UNet ran for a picture.

    python benchmarks/starter_quality.py --write
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import StableDiffusionPipeline
from PIL import Image
from tqdm import tqdm

from hybridge.lab.harness import record
from hybridge.lab.harness.environment import environment
from hybridge.models.catalogue import STARTER
from hybridge.scenes import SIDE, Scene, check, held_out

RECORDS = Path(__file__).parent / "records"
BATCH = 10
GUIDANCE = 3.0


@dataclass(frozen=True)
class Way:
    """One way of denoising.

    Attributes:
        steps: Of the scheduler.
        guidance: Its scale; 1 is none.
        guided: The share of the steps after which guidance ends.
        interval: Of DeepCache: every how many steps the whole UNet runs; 1 is always.
    """

    steps: int
    guidance: float = GUIDANCE
    guided: float = 1.0
    interval: int = 1

    def __str__(self) -> str:
        parts = [f"{self.steps} steps", "no guidance" if self.guidance == 1 else f"guidance {self.guidance:g}"]
        if self.guided < 1:
            parts.append(f"until {self.guided:.0%} of the steps")
        if self.interval > 1:
            parts.append(f"DeepCache, every {self.interval} steps")
        return ", ".join(parts)


WAYS = (
    *(Way(steps) for steps in (50, 20, 10, 5)),
    *(Way(steps, guidance=1) for steps in (50, 20, 10, 5)),
    *(Way(20, guided=share) for share in (0.5, 0.75)),
    *(Way(20, interval=interval) for interval in (2, 3)),
    Way(50, interval=3),
)


def pictures(pipe: Any, way: Way, texts: list[str]) -> tuple[list[Image.Image], float]:
    """A picture of each text, and how often the whole UNet ran for each; DeepCache leaves out its middle."""
    seen = 0
    calls = pipe.unet.mid_block.resnets[0].register_forward_pre_hook(lambda _, inputs: note(len(inputs[0])))

    def note(count: int) -> None:
        nonlocal seen
        seen += count

    def end_guidance(pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == int(way.guided * way.steps) and pipe.do_classifier_free_guidance:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return tensors

    helper = None
    if way.interval > 1:
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=way.interval, cache_branch_id=0)
        helper.enable()
    made = []
    for start in tqdm(range(0, len(texts), BATCH), desc=str(way), leave=False, disable=None):
        some = texts[start : start + BATCH]
        made += pipe(
            some,
            num_inference_steps=way.steps,
            guidance_scale=way.guidance,
            generator=[torch.Generator().manual_seed(start + index) for index in range(len(some))],
            callback_on_step_end=end_guidance,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        ).images
    if helper is not None:
        helper.disable()
    calls.remove()
    return made, seen / len(texts)


def judged(asked: list[tuple[Scene, str]], made: list[Image.Image]) -> dict[str, Any]:
    """What is right, caption by caption, and how many things have their colour and their shape."""
    found = [check(scene, picture) for (scene, _), picture in zip(asked, made, strict=True)]
    return {
        "right": [finding.is_right for finding in found],
        "colours": sum(finding.colours_right for finding in found),
        "shapes": sum(finding.shapes_right for finding in found),
        "wrong": {text: finding.wrong for (_, text), finding in zip(asked, found, strict=True) if finding.wrong},
    }


def table(measured: dict[str, dict[str, Any]], things: int) -> str:
    """As Markdown."""
    rows = [
        "| denoising | captions right | colours | shapes | whole UNet, times |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, found in measured.items():
        shares = (sum(found["right"]) / len(found["right"]), found["colours"] / things, found["shapes"] / things)
        rows.append(f"| {way} | {' | '.join(f'{share:.1%}' for share in shares)} | {found['unet']:g} |")
    return "\n".join(rows)


def sheet(made: list[Image.Image], path: Path, columns: int = 8) -> None:
    """The first pictures side by side."""
    shown = made[: 4 * columns]
    whole = Image.new("RGB", (columns * SIDE, -(-len(shown) // columns) * SIDE))
    for index, picture in enumerate(shown):
        whole.paste(picture, (index % columns * SIDE, index // columns * SIDE))
    whole.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--model", type=Path, default=STARTER, help="folder of the pipeline")
    parser.add_argument("--sheet", type=Path, help="PNG of the first pictures, at 20 steps")
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    asked = held_out(arguments.captions)
    things = sum(len(scene.things) for scene, _ in asked)
    measured = {}
    for way in WAYS:
        made, unet = pictures(pipe, way, [text for _, text in asked])
        measured[str(way)] = {**judged(asked, made), "unet": unet}
        if arguments.sheet and way == Way(20):
            sheet(made, arguments.sheet)
    print(f"{len(asked)} captions of {things} things\n\n{table(measured, things)}")
    if arguments.write:
        told = {"captions": arguments.captions, "guidance": GUIDANCE, "things": things}
        path = RECORDS / "starter-quality.json"
        record.write(record.begin("starter_quality", environment(torch.device("cpu")), told, ways=measured), path)
        print(f"\n{path}")


if __name__ == "__main__":
    main()
