"""What fewer bits do to text embeddings: random encoders of real classes, quantised as the server does it.

Each encoder reads the same random tokens with all its weights in float32 and then in every other way.
The relative error is that of all embeddings together, the cosine the mean over the tokens.
Random weights say how the ways compare; what they do to a picture depends on the real weights, which
``--pipeline`` measures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.engine.text.quantisation import check_runs, held_bytes, loading_arguments, no_gradients
from hybridge.errors import EngineFailure
from hybridge.lab.harness import record
from hybridge.lab.harness.environment import environment
from hybridge.models import QUANTISATIONS

RECORDS = Path(__file__).parent / "records"
CPU = torch.device("cpu")
TOKENS = 64
PROMPTS = ["a lighthouse in a storm", 'a red sign that says "open", under 3 trees, at dusk']


def encoders(*, is_small: bool) -> Iterator[tuple[str, Any]]:
    """Random encoders: of the size of the tests', and of the width of T5-Large and of half a Qwen3-1.7B."""
    width, layers, vocabulary = (256, 4, 1000) if is_small else (1024, 12, 8000)
    size = "tiny" if is_small else "middle"
    torch.manual_seed(0)
    t5 = transformers.T5Config(
        d_model=width, d_kv=64, num_heads=width // 64, d_ff=width * 5 // 2, num_layers=layers,
        vocab_size=vocabulary, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    yield f"T5, {size}", transformers.T5EncoderModel(t5)
    qwen = transformers.Qwen3Config(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=width // 128, head_dim=64, vocab_size=vocabulary,
    )  # fmt: skip
    yield f"Qwen3, {size}", transformers.Qwen3Model(qwen)


def compared(found: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """The relative error and the cosine of embeddings, the last axis of which is a token's."""
    found, exact = found.double(), exact.double()
    return {
        "relative_l2": round(float((found - exact).norm() / exact.norm()), 5),
        "cosine": round(float(torch.nn.functional.cosine_similarity(found, exact, dim=-1).mean()), 5),
    }


def ways() -> Iterator[tuple[str, torch.dtype, str | None]]:
    """Each way's name, the dtype in which it computes, and its quantisation."""
    yield "float32", torch.float32, None
    yield "float16", torch.float16, None
    yield "bfloat16", torch.bfloat16, None
    for kind in QUANTISATIONS:
        yield f"{kind}, bfloat16", torch.bfloat16, kind


def measure_random(*, is_small: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, model in encoders(is_small=is_small):
        ids = torch.randint(1, model.config.vocab_size, (4, TOKENS), generator=torch.Generator().manual_seed(1))
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            exact = None
            for way, dtype, kind in ways():
                try:
                    if kind is not None:
                        check_runs(kind, dtype, CPU)
                except EngineFailure as refusal:
                    yield name, way, {"missing": str(refusal)}
                    continue
                how = {} if kind is None else loading_arguments(kind, dtype, CPU)
                made = type(model).from_pretrained(folder, dtype=dtype, **how).eval()
                with no_gradients(is_quantised=kind is not None):
                    found = made(ids).last_hidden_state
                exact = found if exact is None else exact
                weights = {id(one): held_bytes(one) for one in made.parameters()}
                yield name, way, {"weights_bytes": sum(weights.values()), **compared(found, exact)}


def measure_pipeline(folder: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    exact = None
    for way, dtype, kind in ways():
        options = EngineOptions(dtype=str(dtype).removeprefix("torch."))  # type: ignore[arg-type] # one of them
        try:
            engine = TextEngine.load(folder, options, quantisation=kind)
        except EngineFailure as refusal:
            yield folder, way, {"missing": str(refusal)}
            continue
        made = [engine.encode({"prompt": prompt}).tensors["prompt_embeds"] for prompt in PROMPTS]
        found = torch.cat([(one[0] if isinstance(one, list) else one).flatten(0, -2).cpu() for one in made])
        exact = found if exact is None else exact
        yield folder, way, {"weights_bytes": engine.weights_bytes, **compared(found, exact)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", metavar="FOLDER", help="measure the text encoders of a pipeline instead")
    parser.add_argument("--small", action="store_true", help="tiny encoders only")
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    sizes = (True,) if arguments.small else (True, False)
    measured = (
        measure_pipeline(arguments.pipeline)
        if arguments.pipeline
        else (row for is_small in sizes for row in measure_random(is_small=is_small))
    )
    for name, way, row in measured:
        rows.setdefault(name, {})[way] = row
        print(f"{name}, {way}: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.write:
        path = RECORDS / "text-quantisation.json"
        record.write(record.begin("text-quantisation", environment(CPU), {"tokens": TOKENS}, encoders=rows), path)
        print(path)


if __name__ == "__main__":
    main()
