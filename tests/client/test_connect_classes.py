"""``connect`` on pipelines of every VAE class: the call gives what it gives with the pipeline's own VAE.

The pipelines are those of ``benchmarks/diffusers_pipelines``, small and with random weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "diffusers_pipelines"))

import later
import transformers_2d
import trial
import videos

#: Pipelines, and how equal the results are: the same bits, or within half a step of an 8-bit picture.
PIPELINES = {
    "AnimateDiffPipeline": "bitwise",
    "CogVideoXPipeline": "bitwise",
    "CogVideoXVideoToVideoPipeline": "bitwise",
    "Flux2KleinPipeline": "bitwise",
    "Flux2Pipeline": "bitwise",
    "HunyuanImagePipeline": "bitwise",
    "HunyuanVideoPipeline": "bitwise",
    "LTXPipeline": "bitwise",
    "MochiPipeline": "bitwise",
    "QwenImageImg2ImgPipeline": "bitwise",
    "QwenImagePipeline": "bitwise",
    "SanaPipeline": "bitwise",
    "SanaSprintPipeline": "bitwise",
    "StableVideoDiffusionPipeline": "rounding",
    "WanImageToVideoPipeline": "bitwise",
    "WanPipeline": "bitwise",
    "WanVACEPipeline": "bitwise",
    "WanVideoToVideoPipeline": "bitwise",
}


def case_of(name: str) -> Any:
    """The benchmark's case; making the cases imports pipelines, of which some warn."""
    cases = (case for module in (later, transformers_2d, videos) for case in module.cases())
    return next(case for case in cases if case.name == name)


@pytest.mark.filterwarnings("ignore")  # diffusers' own, of pipelines that are on their way out
@pytest.mark.parametrize("name", PIPELINES)
def test_the_result_is_that_of_the_own_vae(name: str) -> None:
    record: dict[str, Any] = trial.run(case_of(name), ("connect", "vae=None"))
    assert "local" not in record, record["local"]
    found = {way: (record[way]["kind"], record[way]["said"]) for way in ("connect", "vae=None")}
    assert found["connect"][0] == PIPELINES[name], found
    # Where a pipeline with vae=None does not say which model it needs, `model=` is asked for.
    assert found["vae=None"][0] == PIPELINES[name], found
