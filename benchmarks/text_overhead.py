"""What a server adds to a text encoder's own time, what a kept answer takes, and the memory of loading.

The encoder is a T5 with random weights in bfloat16, by default of T5-XXL's shape, in a pipeline of Chroma's class.
Prompts through the server and prompts to the engine alone take turns in one process.
The added time is that of a request less that of ``TextEngine.encode`` within it.
A kept answer is compared with the same bytes from a server that does nothing else, in turns too: the difference of
the two medians is what it takes beyond the transfer.
Loading is measured in a process of its own, from the resident set: once as the files are, and once converted to
float32, with an eighth of the layers.
"""

from __future__ import annotations

import argparse
import http.server
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
from safetensors.torch import save_file

from hybridge.engine import EngineOptions, limit_threads
from hybridge.engine.text import TextEngine
from hybridge.lab.harness import record
from hybridge.lab.harness.environment import environment
from hybridge.models import TextSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

RECORDS = Path(__file__).parent / "records"

#: Width, inner width, heads, layers.
SHAPES = {"xxl": (4096, 10240, 64, 24), "large": (1024, 2816, 16, 24), "tiny": (128, 256, 2, 2)}
VOCABULARY = 32_128

#: What is aimed at: added time, a kept answer beyond the transfer, peak memory of loading over the weights.
AIMS = {"added": 0.02, "kept_ms": 5.0, "peak": 1.1}

POLL_S = 0.005

#: A prompt of the largest shape takes a minute on two slow processors.
TIMEOUT_S = 600.0


def write_pipeline(folder: Path, shape: str, *, share: int = 1) -> None:
    """A pipeline of Chroma's class with a random T5, of which one ``share``-th of the layers is there."""
    width, inner, heads, layers = SHAPES[shape]
    config = transformers.T5Config(
        d_model=width, d_ff=inner, d_kv=64, num_heads=heads, num_layers=max(1, layers // share),
        vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", architectures=["T5EncoderModel"], dtype="bfloat16",
    )  # fmt: skip
    encoder = folder / "text_encoder"
    encoder.mkdir(parents=True)
    config.save_pretrained(encoder)
    with torch.device("meta"):
        model = transformers.T5EncoderModel(config)
    generator = torch.Generator().manual_seed(0)
    places, total = {}, 0
    # A file for each block, so that no more than one is in memory while they are written.
    blocks: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        blocks.setdefault(".".join(name.split(".")[:3]), {})[name] = parameter.shape
    for index, shapes in enumerate(blocks.values()):
        file = f"model-{index:05}.safetensors"
        tensors = {
            name: torch.ones(size, dtype=torch.bfloat16)
            if len(size) == 1
            else torch.empty(size, dtype=torch.bfloat16).normal_(0, size[-1] ** -0.5, generator=generator)
            for name, size in shapes.items()
        }
        save_file(tensors, encoder / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": places}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words += [(chr(code), -3.0) for code in range(33, 127)]
    words += [(f"▁word{number}", -4.0) for number in range(VOCABULARY - len(words))]
    transformers.T5Tokenizer(vocab=words, extra_ids=0, model_max_length=512).save_pretrained(folder / "tokenizer")
    index = {
        "_class_name": "ChromaPipeline",
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def _resident() -> tuple[int, int]:
    """Bytes of this process that are its own, and of files that it maps."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous, files = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return anonymous, files


def load(folder: str, dtype: str) -> dict[str, float]:
    """Loads an encoder; its weights and the largest growth of the resident set, in bytes."""
    limit_threads()
    import diffusers

    _ = diffusers.ChromaPipeline, transformers.T5EncoderModel, transformers.T5Tokenizer  # imported lazily
    before, peak, is_done = _resident(), [0, 0], threading.Event()

    def watch() -> None:
        while not is_done.wait(POLL_S):
            now = _resident()
            peak[0] = max(peak[0], now[0] - before[0])
            peak[1] = max(peak[1], sum(now) - sum(before))

    watching = threading.Thread(target=watch)
    watching.start()
    engine = TextEngine.load(folder, EngineOptions(device="cpu", dtype=dtype))  # type: ignore[arg-type] # one of them
    is_done.set()
    watching.join()
    return {"weights_bytes": engine.weights_bytes, "peak_anonymous_bytes": peak[0], "peak_bytes": peak[1]}


@contextmanager
def sending(body: bytes) -> Iterator[str]:
    """The address of a server that answers every request with the same bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**20  # head and body together: a pause for an acknowledgement would be no transfer

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def timed_ms(client: httpx.Client, url: str, prompt: str, length: int) -> tuple[float, httpx.Response]:
    begun = time.perf_counter()
    response = client.post(url, json={"prompt": prompt, "max_sequence_length": length}).raise_for_status()
    return 1e3 * (time.perf_counter() - begun), response


def measure(folder: Path, turns: int, hits: int, length: int) -> dict[str, list[float]]:
    """Milliseconds of everything, one number for each turn."""
    samples: dict[str, list[float]] = {name: [] for name in ("engine", "server", "within", "kept", "transfer")}
    seen: list[tuple[TextEngine, float]] = []
    encode = TextEngine.encode

    def watched(engine: TextEngine, *arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        made = encode(engine, *arguments, **options)
        seen.append((engine, 1e3 * (time.perf_counter() - begun)))
        return made

    backend = LocalBackend(
        {},
        texts=[TextSpec("t5", str(folder), "ChromaPipeline")],
        options=EngineOptions(device="cpu"),
        prompt_cache_bytes=2**28,
    )
    TextEngine.encode = watched  # type: ignore[method-assign] # to know its own time within a request
    try:
        with running(create_app(backend)) as address, httpx.Client(timeout=TIMEOUT_S) as client:
            url = f"{address}/v1/t5/prompt"
            body = timed_ms(client, url, "word1", length)[1].content  # loads it
            engine = seen[-1][0]
            for turn in range(turns + 1):
                begun = time.perf_counter()
                encode(engine, {"prompt": f"word{turn} word7 alone", "max_sequence_length": length})
                alone = 1e3 * (time.perf_counter() - begun)
                wall, _ = timed_ms(client, url, f"word{turn} word7 served", length)
                if turn:
                    samples["engine"].append(alone)
                    samples["server"].append(wall)
                    samples["within"].append(seen[-1][1])
            with sending(body) as other:
                for turn in range(hits + 1):
                    kept, response = timed_ms(client, url, "word1", length)
                    if response.headers["hybridge-cache"] != "hit":
                        raise SystemExit("an answer was not kept")
                    transfer, _ = timed_ms(client, other, "word1", length)
                    if turn:
                        samples["kept"].append(kept)
                        samples["transfer"].append(transfer)
    finally:
        TextEngine.encode = encode  # type: ignore[method-assign]
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="xxl")
    parser.add_argument("--turns", type=int, default=10, help="prompts to the engine and to the server")
    parser.add_argument("--hits", type=int, default=200, help="answers that are kept")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt, padding included")
    parser.add_argument("--folder", type=Path, help="where the pipelines are written, with room for 12 GB")
    parser.add_argument("--write", action="store_true", help="keep the record in benchmarks/records")
    arguments = parser.parse_args()
    limit_threads()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        whole, part = Path(name) / "whole", Path(name) / "part"
        write_pipeline(whole, arguments.shape)
        write_pipeline(part, arguments.shape, share=8)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            loads = {
                "bfloat16": pool.apply(load, (str(whole), "bfloat16")),
                "float32": pool.apply(load, (str(part), "float32")),
            }
        samples = measure(whole, arguments.turns, arguments.hits, arguments.length)
    added = statistics.median(
        (server - own) / own for server, own in zip(samples["server"], samples["within"], strict=True)
    )
    medians = {name: statistics.median(values) for name, values in samples.items()}
    beyond = medians["kept"] - medians["transfer"]
    print(f"T5 {arguments.shape}, {arguments.length} tokens, medians of {arguments.turns}; one process, in turns")
    print(f"engine alone {medians['engine']:.1f} ms, through the server {medians['server']:.1f} ms")
    print(f"the server adds {added:.2%} to the encoder's own time (aim {AIMS['added']:.0%})")
    print(
        f"a kept answer {medians['kept']:.2f} ms, {beyond:.2f} ms beyond its transfer (aim {AIMS['kept_ms']:g} ms)"
    )
    for dtype, kept in loads.items():
        anonymous, all_ = (kept[key] / kept["weights_bytes"] for key in ("peak_anonymous_bytes", "peak_bytes"))
        print(
            f"loading in {dtype}: peak {anonymous:.2f} of the weights, with mapped files {all_:.2f} "
            f"(aim {AIMS['peak']:g})"
        )
    if arguments.write:
        asked = {"shape": arguments.shape, "length": arguments.length, "turns": arguments.turns}
        path = RECORDS / f"text-overhead-{arguments.shape}.json"
        made = record.begin(
            "text-overhead", environment(torch.device("cpu")), asked, milliseconds=samples, loads=loads
        )
        record.write(made, path)
        print(path)


if __name__ == "__main__":
    main()
