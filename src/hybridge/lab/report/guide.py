"""The figures of Félix Sanz's guide, as data: one person's table, shown beside ours and never mixed with it.

Everything was measured with SDXL on an RTX 3090 in FP16, 1024×1024, 50 steps, CFG 5, batch 1, mean of five
runs over four prompts; a condition that differs is said with its figure.  Only numbers in the guide's text are
here: most of its tables are pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .words import Text

SOURCE = "https://www.felixsanz.dev/articles/ultimate-guide-to-optimizing-stable-diffusion-xl"

CONDITION = Text(
    "SDXL on an RTX 3090, FP16, 1024×1024, 50 steps, mean of five runs over four prompts",
    "SDXL，RTX 3090，FP16，1024×1024，50 步，四个提示词各运行五次取平均",
)

GB = 10**9

#: What a figure is of; ratios are to the guide's own FP16 baseline.
Quantity = Literal["seconds", "bytes", "time ratio", "memory ratio", "first picture", "preparation", "file bytes"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of the guide.

    Attributes:
        value: Seconds, bytes or a ratio.
        bound: ``<`` where the guide only says less than, ``≈`` where it says about.
        when: A condition beyond :data:`CONDITION`, or None.
    """

    quantity: Quantity
    value: float
    bound: Literal["", "<", "≈"] = ""
    when: Text | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A preset of the guide's conclusions.

    Attributes:
        techniques: By our names; a measured configuration of the same techniques stands beside it.
        remark: What the guide says where it gives no number.
    """

    title: Text
    techniques: tuple[str, ...]
    seconds: Figure | None
    memory: Figure | None
    remark: Text | None = None


_REFINED = Text("base and refiner", "基础模型与精炼模型")

#: By technique.
FIGURES: dict[str, tuple[Figure, ...]] = {
    "baseline": (Figure("seconds", 14.0), Figure("bytes", 11.24 * GB)),
    "fp16": (
        Figure("file bytes", 5 * GB, when=Text("10 GB in FP32", "FP32 为 10 GB")),
        Figure("bytes", 11.24 * GB),
    ),
    "tf32": (Figure("memory ratio", 0.93, when=Text("cudnn.allow_tf32 = False", "cudnn.allow_tf32 = False")),),
    "vae-fp16-fix": (Figure("memory ratio", 0.85),),
    "steps-25": (Figure("time ratio", 0.6, "≈", Text("25 to 30 steps", "25 至 30 步")),),
    "steps-30": (Figure("time ratio", 0.6, "≈", Text("25 to 30 steps", "25 至 30 步")),),
    "cfg-cutoff-50": (Figure("time ratio", 0.75),),
    "cfg-cutoff-75": (Figure("time ratio", 0.875),),
    "refiner-ensemble-80": (Figure("bytes", 17.38 * GB, when=_REFINED),),
    "refiner-ensemble-90": (Figure("bytes", 17.38 * GB, when=_REFINED),),
    "batch-processing": (Figure("bytes", 5.77 * GB), Figure("time ratio", 1.0)),
    "deepcache": (Figure("time ratio", 0.5, "<", Text("interval 3, branch 0", "间隔 3，分支 0")),),
    "tensorrt": (Figure("seconds", 8.0), Figure("preparation", 1800.0, "≈")),
    "stable-fast": (Figure("first picture", 19.0),),
    "onediff": (Figure("time ratio", 0.55), Figure("memory ratio", 1.0)),
    "model-offload": (Figure("memory ratio", 0.5, "≈"),),
    "sequential-offload": (
        Figure("bytes", 2.56 * GB, when=Text("with the VAE FP16 fix", "配合 VAE FP16 修正版")),
        Figure("bytes", 0.68 * GB, when=Text("with the Tiny VAE", "配合 Tiny VAE")),
    ),
}

_SLOWER = Text("far slower, no number", "慢得多，未给数字")

#: Its conclusions, in its order.
RECIPES: tuple[Recipe, ...] = (
    Recipe(Text("baseline, FP16", "基线，FP16"), (), Figure("seconds", 14.0), Figure("bytes", 11.24 * GB)),
    Recipe(
        Text("fastest", "最快"),
        ("onediff", "tiny-vae", "cfg-cutoff-75", "steps-30"),
        Figure("seconds", 4.0),
        Figure("bytes", 6.91 * GB),
        Text("2.7 s on an A100, 2.0 s on an H100", "A100 上 2.7 秒，H100 上 2.0 秒"),
    ),
    Recipe(
        Text("under 4 GB", "4 GB 以内"),
        ("sequential-offload", "vae-fp16-fix"),
        None,
        Figure("bytes", 2.56 * GB),
        _SLOWER,
    ),
    Recipe(
        Text("under 4 GB", "4 GB 以内"),
        ("sequential-offload", "tiny-vae"),
        None,
        Figure("bytes", 0.68 * GB),
        _SLOWER,
    ),
    Recipe(
        Text("under 6 GB", "6 GB 以内"),
        ("batch-processing",),
        None,
        Figure("bytes", 5.77 * GB),
        Text("no loss of time; with the refiner too", "不损失时间；加精炼模型亦然"),
    ),
    Recipe(Text("under 6 GB", "6 GB 以内"), ("batch-processing", "vae-fp16-fix"), Figure("seconds", 12.9), None),
    Recipe(
        Text("under 6 GB", "6 GB 以内"),
        ("batch-processing", "tiny-vae"),
        Figure("seconds", 12.6),
        Figure("bytes", 5.6 * GB),
    ),
    Recipe(
        Text("under 6 GB", "6 GB 以内"),
        ("model-offload",),
        None,
        Figure("memory ratio", 0.5, "≈"),
        Text("slightly slower, no number", "略慢，未给数字"),
    ),
    Recipe(
        Text("under 8 GB", "8 GB 以内"),
        ("onediff", "tiny-vae"),
        None,
        Figure("bytes", 6.91 * GB),
        Text("“the lowest time”, no number", "“最短时间”，未给数字"),
    ),
)
