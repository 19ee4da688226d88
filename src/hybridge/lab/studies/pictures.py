"""How far pictures are from the baseline's, and how they are kept.

Pictures are arrays (B, H, W, 3), float in [0, 1].  PSNR, SSIM and the largest and mean difference are of the
numbers as the pipeline gave them, not of the eight bits that are shown.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...errors import RequestError
from ...scenes import check, read
from ..harness.environment import version

#: From (pictures, the baseline's, the prompt) to a number, or None where there is none for pictures of this size.
Score = Callable[[Any, Any, str], "float | None"]

#: Whose score torchmetrics and diffusers' own documentation report: 100 × the cosine between picture and prompt.
CLIP = "openai/clip-vit-large-patch14"

#: Of what CLIP looks at, from its preprocessor's configuration.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_SPREAD = (0.26862954, 0.26130258, 0.27577711)

#: What lpips builds on, as torchvision caches it.
_ALEXNET = "alexnet-owt-7be5be79.pth"

#: Of SSIM, in pixels: a Gaussian of sigma 1.5, cut off at 3.5 sigma.
_SSIM_WINDOW = 11


@dataclass(frozen=True, slots=True)
class Judge:
    """A way to score a picture that needs more than NumPy.

    Attributes:
        why_missing: Why it cannot be used here, or None.
        make: Loads what it needs.
    """

    why_missing: Callable[[], str | None]
    make: Callable[[], Score]


def judges_missing() -> dict[str, str]:
    """Why scores are not given here, by name."""
    return {name: reason for name, judge in JUDGES.items() if (reason := judge.why_missing())}


def difference(
    pictures: Any, baseline: Any, prompt: str = "", scores: dict[str, Score] | None = None
) -> dict[str, float | None]:
    """How far pictures are from the baseline's.

    ``psnr_db`` takes 1 for the peak and is None for equal pictures; ``largest`` and ``mean`` are of absolute
    differences.  A score that is not among ``scores`` is None.
    """
    apart = np.abs(np.asarray(pictures, dtype=np.float64) - np.asarray(baseline, dtype=np.float64))
    squared = float(np.mean(apart**2))
    return {
        "psnr_db": -10 * math.log10(squared) if squared else None,
        "largest": float(apart.max()),
        "mean": float(apart.mean()),
        **dict.fromkeys(JUDGES),
        **{name: score(pictures, baseline, prompt) for name, score in (scores or {}).items()},
    }


def write_png(pictures: Any, path: Path) -> None:
    """The first picture of a call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (np.asarray(pictures[0]).clip(0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(path)


def _ssim() -> Score:
    """Wang et al. 2004, as its authors set it: a Gaussian window of 1.5 pixels."""
    from skimage.metrics import structural_similarity

    similarity: Any = structural_similarity

    def score(pictures: Any, baseline: Any, _prompt: str) -> float | None:
        if min(pictures[0].shape[:2]) < _SSIM_WINDOW:
            return None
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        pairs = zip(pictures, baseline, strict=True)
        found = [similarity(a, b, channel_axis=-1, data_range=1.0, **settings) for a, b in pairs]
        return float(np.mean(found))

    return score


def _lpips() -> Score:
    """Zhang et al. 2018, over AlexNet as its authors advise for comparing."""
    import lpips  # type: ignore[import-not-found]

    model = lpips.LPIPS(net="alex", verbose=False)

    @torch.no_grad()
    def score(pictures: Any, baseline: Any, _prompt: str) -> float:
        return float(model(_channels_first(pictures), _channels_first(baseline), normalize=True).mean())

    return score


def _why_no_lpips() -> str | None:
    for name in ("lpips", "torchvision"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _ALEXNET
    return None if weights.is_file() else f"{weights} is not there"


def clip_score(source: str = CLIP) -> Score:
    """100 × the cosine between what CLIP sees in the picture and what it reads in the prompt; Hessel et al. 2021.

    Args:
        source: A hub id that is in the cache, or a folder.
    """
    from transformers import CLIPModel, CLIPTokenizer

    kind: Any = CLIPModel
    model = kind.from_pretrained(source, local_files_only=True, use_safetensors=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    side, tokens = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def score(pictures: Any, _baseline: Any, prompt: str) -> float:
        words = tokenizer([prompt], return_tensors="pt", truncation=True, max_length=tokens)
        seen = torch.nn.functional.interpolate(
            _channels_first(pictures), (side, side), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
        mean, spread = (torch.tensor(of).reshape(1, 3, 1, 1) for of in (_CLIP_MEAN, _CLIP_SPREAD))
        found = model(pixel_values=(seen - mean) / spread, **words)
        return float(100 * (found.image_embeds * found.text_embeds).sum(-1).mean())

    return score


def _why_no_clip() -> str | None:
    if version("transformers") is None:
        return "transformers is not installed"
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(CLIP, "model.safetensors")
    return None if isinstance(cached, str) else f"{CLIP} is not in the cache of the hub"


def _caption() -> Score:
    """The share of pictures that show the whole prompt, where it is a caption of :mod:`hybridge.scenes`."""

    def score(pictures: Any, _baseline: Any, prompt: str) -> float | None:
        try:
            scene = read(prompt)
        except RequestError:
            return None
        shown = (np.asarray(pictures).clip(0, 1) * 255).round().astype(np.uint8)
        return float(np.mean([check(scene, picture).is_right for picture in shown]))

    return score


def _channels_first(pictures: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(pictures, dtype=np.float32)).permute(0, 3, 1, 2)


JUDGES: dict[str, Judge] = {
    "ssim": Judge(lambda: None if version("scikit-image") else "scikit-image is not installed", _ssim),
    "lpips": Judge(_why_no_lpips, _lpips),
    "clip_score": Judge(_why_no_clip, clip_score),
    "caption": Judge(lambda: None, _caption),
}
