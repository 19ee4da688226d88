"""A study's record as `hybridge lab run` writes it: numbers chosen by a seed, and pictures that were painted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MB = 10**6

ENVIRONMENT: dict[str, Any] = {
    "hybridge": "0.1.0",
    "torch": "2.13.0+cpu",
    "diffusers": "0.42.1",
    "openvino": "2026.4.1",
    "python": "3.11.7",
    "system": "Linux x86_64",
    "cpu": "AMD EPYC",
    "instructions": ["avx", "avx2", "f16c", "fma"],
    "capability": "AVX2",
    "cores": 2,
    "threads": 2,
    "memory_bytes": 25276510208,
    "device": "cpu",
}

PROMPTS = [
    {
        "name": "portrait",
        "prompt": "3/4 shot, candid photograph of a woman, peacefully sleeping",
        "seed": 877866765,
    },
    {"name": "interior", "prompt": "futuristic living room with big windows, brown sofas", "seed": 5567822456},
    {"name": "macro", "prompt": "macro shot of a bee collecting nectar from lavender flowers", "seed": 2257899453},
    {"name": "3D", "prompt": "3d rendered isometric fiji island beach, 3d tile, polygon", "seed": 987867834},
]

#: Technique: (outcome, time, memory, resident) to the baseline's, how far the picture is, and what was seen.
WORKED: dict[str, tuple[float, float, float, float, str]] = {
    "bf16": (0.91, 0.5, 0.71, 2e-3, "dtype torch.bfloat16, 204 of 408 MB of weights"),
    "attention-vanilla": (1.4, 1.13, 1.1, 2e-7, "34 AttnProcessor"),
    "attention-slicing": (1.12, 1.01, 1.0, 2e-7, "34 SlicedAttnProcessor"),
    "channels-last": (0.94, 1.0, 1.0, 2e-7, "strides (288, 1, 96, 32) of conv_out"),
    "tiny-vae": (0.86, 0.82, 0.84, 4e-2, "AutoencoderTiny"),
    "exact-vae": (0.97, 0.9, 0.92, 0.0, "4 decodes in strips"),
    "freeu": (1.0, 1.0, 1.0, 1.8e-2, "b1 of 2 up blocks"),
    "fused-qkv": (0.99, 1.06, 1.03, 0.0, "28 to_qkv, 28 to_kv"),
    "steps-25": (0.52, 1.0, 1.0, 3e-2, "25 forwards"),
    "steps-30": (0.62, 1.0, 1.0, 2e-2, "30 forwards"),
    "cfg-cutoff-50": (0.77, 1.0, 1.0, 2.4e-2, "26 × 2 + 24 × 1"),
    "cfg-cutoff-75": (0.89, 1.0, 1.0, 1.2e-2, "38 × 2 + 12 × 1"),
    "batch-processing": (1.02, 0.52, 0.63, 0.0, "the text encoders were gone before the UNet came"),
    "deepcache": (0.46, 1.03, 1.02, 1e-2, "4 of 10 forwards of the mid block"),
    "pab": (0.83, 1.05, 1.03, 9e-4, "cross-attention computed 4 times of 10, 56 hooks"),
    "tgate": (0.72, 1.02, 1.0, 6e-3, "attn2.to_k called in 5 of 10 steps"),
    "compile-regional": (0.9, 0.0, 1.2, 2e-7, "_compiled_call_impl on 28 blocks"),
    "torchao-int8": (0.87, 0.61, 0.66, 4e-4, "323 Int8Tensor"),
    "bitsandbytes-nf4": (1.3, 0.47, 0.58, 1e-2, "323 weights of uint8"),
    "group-offload-disk": (1.32, 0.14, 0.2, 0.0, "504 hooks, 31 files"),
    "openvino": (0.47, 0.0, 1.35, 2e-7, "inputs [?,4,?,?], 0 forwards in torch"),
}

NO_EFFECT = {
    "tome": "as many tokens into attn1.to_q as before: 256",
    "attention-backend": "none of 34 processors has an _attention_backend",
    "taylorseer-defaults": "0 hooks",
    "vae-slicing": "1 decode of batch 1",
}

MISSING: dict[str, tuple[str, str, str | None]] = {
    "xformers": ("unavailable", "xformers is not installed; it needs CUDA", "SDPA, already the default"),
    "tensorrt": ("unavailable", "Could not find libnvinfer.so.11", "OpenVINO on a CPU"),
    "torchao-int4": ("unavailable", "ImportError: Requires mslk", "torchao int8"),
    "onediff": ("dead", "its last commit is of 2025-05-08; it needs torch ≤ 2.5.1", "torch.compile"),
    "core-ml": ("unavailable", "not a Mac", None),
    "remote-text": ("unavailable", "the server has no endpoint for prompts yet", None),
}

STACKS: dict[str, list[str]] = {
    "fastest": ["tiny-vae", "deepcache", "steps-30"],
    "smallest": ["bf16", "tiny-vae", "group-offload-disk"],
    "onediff-guide": ["tiny-vae", "onediff", "cfg-cutoff-75", "steps-30"],
}


def painted(seed: int, side: int, distance: float = 0.0, salt: int = 0) -> Image.Image:
    """A picture of soft colours, the same for the same seed; ``distance`` away from it, in 0 … 1."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray((rng.random((6, 6, 3)) * 255).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    noise = np.random.default_rng([seed, salt]).normal(0, 1, (side, side, 3))
    soft = np.cumsum(np.cumsum(noise, 0), 1)
    soft = soft / np.abs(soft).max()
    values = np.asarray(coarse, np.float64) + 255 * distance * (noise * 0.3 + soft * 3)
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def study(folder: Path, *, side: int = 96, runs: int = 5, steps: int = 50, name: str = "study.json") -> Path:
    """Writes a record of everything above, with its pictures, into a folder."""
    measurements = [_measured(folder, "baseline", [], 1.0, 1.0, 1.0, 0.0, side, runs, steps)]
    for technique, (time, memory, resident, distance, evidence) in WORKED.items():
        parts = [_part(technique, "worked", evidence=evidence)]
        kept = steps // 2 if technique == "steps-25" else 30 if technique == "steps-30" else steps
        one = _measured(folder, technique, parts, time, memory, resident, distance, side, runs, kept)
        if technique in ("compile-regional", "openvino"):
            one["preparation_s"] = one["first_picture_s"] = 8.6
            one["peak"]["exact_bytes"] = None
            one["why_not_exact"] = "it runs outside of eager torch"
        measurements.append(one)
    for technique, evidence in NO_EFFECT.items():
        parts = [_part(technique, "no effect", evidence=evidence)]
        measurements.append(_measured(folder, technique, parts, 1.004, 1.0, 1.0, 0.0, side, runs, steps))
    measurements += [
        _missing(technique, [_part(technique, outcome, reason=reason, instead=instead)])
        for technique, (outcome, reason, instead) in MISSING.items()
    ]
    measurements.append(
        _missing(
            "first-block-cache",
            [_part("first-block-cache", "failed", reason="IndexError: tuple index out of range")],
        )
    )
    parts = [_part(technique, "worked", evidence=WORKED[technique][4]) for technique in STACKS["fastest"]]
    measurements.append(_measured(folder, "fastest", parts, 0.26, 0.83, 0.85, 5e-2, side, runs, 30))
    parts = [_part(technique, "worked", evidence=WORKED[technique][4]) for technique in STACKS["smallest"]]
    measurements.append(_measured(folder, "smallest", parts, 1.21, 0.07, 0.17, 4e-2, side, runs, steps))
    parts = [
        _part(each, "dead", reason=MISSING["onediff"][1], instead="torch.compile")
        if each == "onediff"
        else _part(each, "worked", evidence=WORKED[each][4])
        for each in STACKS["onediff-guide"]
    ]
    measurements.append(_missing("onediff-guide", parts, outcome="dead"))
    return written(folder / name, measurements, side=side, runs=runs, steps=steps)


def written(path: Path, measurements: list[dict[str, Any]], *, side: int, runs: int = 5, steps: int = 50) -> Path:
    """A record of these measurements."""
    configurations = [
        {"name": one["configuration"], "techniques": [part["name"] for part in one["techniques"]]}
        for one in measurements
    ]
    record = {
        "schema": 2,
        "benchmark": "study",
        "date": "2026-11-21",
        "environment": ENVIRONMENT,
        "arguments": {
            "pipeline": "tiny",
            "prompts": PROMPTS,
            "configurations": configurations,
            "runs": runs,
            "steps": steps,
            "guidance_scale": 5.0,
            "size": side,
            "batch": 1,
            "device": "cpu",
            "dtype": "float32",
            "limit_s": 600.0,
            "server": None,
        },
        "pipeline": {
            "name": "tiny",
            "class": "StableDiffusionXLPipeline",
            "weights": "random",
            "parameters": {"unet": 102_000_000},
        },
        "not_scored": {"lpips": "lpips is not installed"},
        "measurements": measurements,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return path


def _part(name: str, outcome: str, **told: str | None) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, "evidence": None, "reason": None, "instead": None, **told}


def _missing(name: str, parts: list[dict[str, Any]], outcome: str | None = None) -> dict[str, Any]:
    reason = next(part["reason"] for part in parts if part["reason"])
    return {"configuration": name, "outcome": outcome or parts[0]["outcome"], "reason": reason, "techniques": parts}


def _measured(
    folder: Path,
    name: str,
    parts: list[dict[str, Any]],
    time: float,
    memory: float,
    resident: float,
    distance: float,
    side: int,
    runs: int,
    steps: int,
) -> dict[str, Any]:
    rng = np.random.default_rng(sum(name.encode()))
    seconds = {
        prompt["name"]: [round(float(3.2 * time * (1 + rng.normal(0, 0.012))), 4) for _ in range(runs)]
        for prompt in PROMPTS
    }
    pictures = {}
    for prompt in PROMPTS:
        path = f"pictures/{name}/{prompt['name']}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        painted(prompt["seed"], side, distance, salt=sum(name.encode())).save(folder / path)
        pictures[prompt["name"]] = path
    equal = {"psnr_db": None, "ssim": 1.0, "largest": 0.0, "mean": 0.0, "lpips": None, "clip_score": None}
    far = (
        {"psnr_db": -20 * np.log10(distance), "ssim": 1 - 4 * distance, "largest": 9 * distance, "mean": distance}
        if distance
        else {}
    )
    calls = [2] * 26 + [1] * (steps - 26) if name == "cfg-cutoff-50" else [2] * steps
    return {
        "configuration": name,
        "outcome": parts[0]["outcome"] if parts else "worked",
        "reason": None,
        "techniques": parts,
        "load_s": 1.2,
        "preparation_s": 0.01,
        "first_picture_s": 3.3 * time,
        "seconds": seconds,
        "steps": steps,
        "denoiser_calls": calls,
        "weights_bytes": round(408 * MB * memory),
        "peak": {
            "exact_bytes": round(76 * MB * memory) or None,
            "allocated_bytes": None,
            "reserved_bytes": None,
            "resident_bytes": round(441 * MB * resident),
        },
        "difference": {prompt["name"]: equal | far for prompt in PROMPTS},
        "pictures": pictures,
    }
