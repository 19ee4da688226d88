"""``hybridge prompt``: a folder of embeddings that can be filled in several goes."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import hybridge
from safetensors import safe_open
from safetensors.torch import load_file
from text_servers import case_of, saved, serving

from hybridge.engine import EngineOptions
from hybridge.engine.text import TextEngine
from hybridge.errors import RequestError
from hybridge.protocol import (
    PROMPT_ITEM_BYTES,
    HttpResponse,
    PromptAnswer,
    padding_of,
    read_prompt_request,
    write_failure,
    write_prompt_answer,
)
from hybridge.protocol.torch import from_torch


def embedding_of(prompt: str) -> torch.Tensor:
    """As many ones as the prompt has letters, of 16."""
    return (torch.arange(16) < len(prompt)).to(torch.bfloat16).reshape(1, 16, 1)


@dataclass
class Server:
    """Answers prompts by their length; those in ``refused`` it refuses, and after ``last`` it is broken."""

    text: dict[str, Any] = field(default_factory=lambda: {"dtype": "bfloat16"})
    asked: list[dict[str, Any]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    last: int = 10_000
    url: str = ""

    def answer(self, query: str, headers: dict[str, str], body: bytes) -> HttpResponse:
        request = read_prompt_request(query, headers, body)
        prompt = request.inputs["prompt"]
        assert isinstance(prompt, str)
        if prompt in self.refused:
            return write_failure(RequestError("not this one"))
        if len(self.asked) >= self.last:
            return HttpResponse(500, {"content-type": "application/json"}, b'{"error": "broken", "code": "x"}')
        self.asked.append(dict(request.inputs))
        answer = PromptAnswer(
            {"prompt_embeds": from_torch(embedding_of(prompt), PROMPT_ITEM_BYTES)},
            {"prompt_embeds": "batch"},
            {"model": "tiny", **self.text},
        )
        body = write_prompt_answer(answer, padding_of(answer, {}) if request.drop_padding else {})
        return HttpResponse(200, {"content-type": "application/x-safetensors"}, body)

    @property
    def prompts(self) -> list[Any]:
        return sorted({one["prompt"] for one in self.asked})


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            models = [
                {"name": "vae", "tasks": ["decode"]},
                {"name": "tiny", "tasks": ["prompt"], "text": state.text},
            ]
            self.send(HttpResponse(200, {}, json.dumps({"models": models}).encode()))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send(state.answer(self.path.partition("?")[2], headers, body))

        def send(self, response: HttpResponse) -> None:
            self.send_response(response.status)
            for name, value in {**response.headers, "content-length": str(len(response.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_address[1]}"
    yield state
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\nein Löwe\r\na cat\n  a dog  \n", encoding="utf-8")
    return path


def listed(folder: Path) -> dict[str, Path]:
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["prompt"]: folder / row["file"] for row in rows}


def test_every_prompt_once_and_the_empty_one(server: Server, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = hybridge("prompt", "--input", lines, "--output", out, "--server", server.url)
    assert server.prompts == ["", "a cat", "a dog", "ein Löwe"]
    assert done.stdout.strip() == f"{out}: 4 prompts"
    files = listed(out)
    assert list(files) == ["", "a cat", "ein Löwe", "a dog"]
    for prompt, path in files.items():
        assert torch.equal(load_file(path)["prompt_embeds"], embedding_of(prompt))  # padding and all
        with safe_open(path, "pt") as file:
            assert file.metadata()["prompt"] == prompt
    assert {path.name for path in out.iterdir()} == {"prompts.jsonl", *(path.name for path in files.values())}


def test_what_is_there_is_not_made_again(server: Server, lines: Path, tmp_path: Path) -> None:
    server.last = 2
    broken = hybridge("prompt", "-i", lines, "-o", tmp_path, "--server", server.url, "--jobs", 1, check=False)
    assert broken.returncode == 1
    assert "broken" in broken.stderr
    server.last = 10_000
    done = hybridge("prompt", "-i", lines, "-o", tmp_path, "--server", server.url)
    assert "2 of 4 prompts are there already" in done.stderr
    assert server.prompts == ["", "a cat", "a dog", "ein Löwe"]
    hybridge("prompt", "-i", lines, "-o", tmp_path, "--server", server.url)
    # Each run asks for its first prompt, because an answer says what embeddings are made with.
    assert [one["prompt"] for one in server.asked].count("") == 3
    assert len(server.asked) == 4 + 2


def test_another_precision_or_option_is_another_file(server: Server, lines: Path, tmp_path: Path) -> None:
    ask = ("prompt", "-i", lines, "-o", tmp_path, "--server", server.url, "--no-empty")
    hybridge(*ask)
    first = listed(tmp_path)
    hybridge(*ask, "--option", "max_sequence_length=256", "--option", "system_prompt=be kind")
    assert server.asked[-1].keys() == {"prompt", "max_sequence_length", "system_prompt"}
    assert server.asked[-1]["max_sequence_length"] == 256
    second = listed(tmp_path)
    server.text["dtype"] = "float16"
    hybridge(*ask)
    assert len({*first.values(), *second.values(), *listed(tmp_path).values()}) == 9


def test_a_prompt_that_is_refused_stops_no_other(server: Server, lines: Path, tmp_path: Path) -> None:
    server.refused = {"a cat"}
    done = hybridge("prompt", "-i", lines, "-o", tmp_path, "--server", server.url, check=False)
    assert done.returncode == 1
    assert "1 of 4 prompts were refused" in done.stderr
    assert "'a cat'" in done.stderr
    assert server.prompts == ["", "a dog", "ein Löwe"]
    server.refused = set()
    hybridge("prompt", "-i", lines, "-o", tmp_path, "--server", server.url)
    assert server.prompts == ["", "a cat", "a dog", "ein Löwe"]


def test_with_a_real_server(lines: Path, tmp_path: Path) -> None:
    case = case_of("FluxPipeline")
    spec = saved(case, tmp_path / "pipeline")
    out = tmp_path / "out"
    with serving([spec]) as address:
        shown = hybridge("models", "--server", address).stdout
        hybridge("prompt", "-i", lines, "-o", out, "--server", address, "--option", "max_sequence_length=32")
    assert "prompt" in shown
    assert "FluxPipeline" in shown
    # Without a server the files are the same, so that either can go on where the other was broken off.
    model = f"{spec.name}={spec.source}"
    local = ("prompt", "-i", lines, "--model", model, "--device", "cpu", "--option", "max_sequence_length=32")
    hybridge(*local, "-o", tmp_path / "local")
    made = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()} == made
    assert "4 of 4 prompts are there already" in hybridge(*local, "-o", out).stderr
    engine = TextEngine.load(spec.source, EngineOptions(device="cpu"))
    for prompt, path in listed(out).items():
        expected = engine.encode({"prompt": prompt, "max_sequence_length": 32}).tensors
        found = load_file(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_without_a_server_a_refused_prompt_stops_no_other(tmp_path: Path) -> None:
    spec = saved(case_of("FluxPipeline"), tmp_path / "pipeline")
    path, out = tmp_path / "prompts.txt", tmp_path / "out"
    path.write_text(f"a\n{'b' * 20_000}\nc\n")
    run = ("prompt", "-i", path, "-o", out, "--model", f"tiny={spec.source}", "--device", "cpu")
    done = hybridge(*run, check=False)
    assert done.returncode == 1
    assert "1 of 4 prompts were refused" in done.stderr
    assert sorted(prompt for prompt, file in listed(out).items() if file.exists()) == ["", "a", "c"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected --model NAME=FOLDER_OR_REPO of a pipeline, or --server"),
        (("--model", "taesd"), "taesd has no text encoders: saw a VAE alone"),
        (("--model", "nowhere"), "unknown model"),
        (("--model", "x=/nowhere"), "no folder for x"),
    ],
)
def test_without_a_server_a_model_is_needed(lines: Path, tmp_path: Path, arguments: Any, said: str) -> None:
    done = hybridge("prompt", "-i", lines, "-o", tmp_path, *arguments, check=False)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (b"\n \n", (), "holds no prompt"),
        (b"a\xff", (), "is not UTF-8"),
        (b"a", ("--option", "prompt=b"), "NAME=VALUE"),
        (b"a", ("--option", "clip_skip"), "NAME=VALUE"),
        (b"a", ("--option", "a=1", "--option", "a=2"), "each NAME once"),
        (b"a", ("--model", "vae"), "serves no prompts of vae"),
    ],
)
def test_what_cannot_be_done_is_said(
    server: Server, tmp_path: Path, content: bytes, arguments: tuple[str, ...], said: str
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    done = hybridge("prompt", "-i", path, "-o", tmp_path, "--server", server.url, *arguments, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert not server.asked


@pytest.mark.parametrize("option", ["model=x", "kind=torch", "images=a.png", "x=" + "[" * 5_000])
def test_arguments_of_the_client_are_no_options(server: Server, tmp_path: Path, option: str) -> None:
    (tmp_path / "prompts.txt").write_text("a\u2028b\n", encoding="utf-8")
    given = ["-i", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "made"), "--server", server.url]
    ran = hybridge("prompt", *given, "--option", option, check=False)
    assert "Traceback" not in ran.stderr
    if option.startswith("x="):
        assert server.prompts == ["", "a\u2028b"]  # one line
    else:
        assert ran.returncode != 0
        assert "is no option of a pipeline" in ran.stderr
