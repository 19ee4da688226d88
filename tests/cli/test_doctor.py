"""``hybridge doctor``: files, folders and servers, well and ill."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import hybridge
from latent_samples import packed, pipeline_latents, with_channels
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save
from secure_servers import SelfSigned

from hybridge import __version__
from hybridge.engine.tiny.taehv import AutoencoderTAEHV
from hybridge.models import latent_space, look_up
from hybridge.models.catalogue import STARTER

VAE = STARTER / "vae"


def report(*arguments: object) -> dict[str, Any]:
    done = hybridge("doctor", *arguments, "--json", check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if document["ok"] else 1)
    return document


def codes(*arguments: object) -> list[str]:
    return [finding["code"] for finding in report(*arguments)["findings"]]


def sixteen_channels() -> np.ndarray:
    return with_channels(pipeline_latents()["sky"], 16)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestFiles:
    def test_latents_are_guessed_aloud(self) -> None:
        save_file({"latents": pipeline_latents()["photograph"]}, "z.safetensors")
        found = report("z.safetensors")
        assert found["facts"]["looks like"][0].startswith("sd-v1, as its pipelines have them")
        assert [finding["code"] for finding in found["findings"]] == ["unknown-space"]

    def test_latents_in_vae_space_are_too(self) -> None:
        raw = latent_space.denormalise(pipeline_latents()["photograph"], look_up("sdxl").normalisation)
        save_file({"latents": np.asarray(raw)}, "z.safetensors")
        assert report("z.safetensors")["facts"]["looks like"][0].startswith("sdxl")
        assert report("z.safetensors")["facts"]["taken as"] == "sdxl's, in VAE space"

    def test_a_name_of_a_servers_own_is_told_and_the_model_guessed(self) -> None:
        about = {"model": "mine", "space": "pipeline"}
        save_file({"latents": pipeline_latents()["photograph"]}, "z.safetensors", about)
        found = report("z.safetensors")
        assert found["facts"]["model"] == "mine, which is none of the catalogue's"
        assert found["facts"]["taken as"] == "sd-v1's, scaled"

    def test_what_the_file_says_is_checked(self) -> None:
        save_file({"latents": pipeline_latents()["sky"]}, "z.safetensors", {"model": "sd-v1", "space": "vae"})
        assert codes("z.safetensors") == ["latents-look-normalised"]
        save_file({"latents": pipeline_latents()["sky"]}, "z.safetensors", {"model": "sd-v1", "space": "pipeline"})
        assert codes("z.safetensors") == []

    @pytest.mark.parametrize(
        ("latents", "options", "code"),
        [
            (lambda: np.full((1, 4, 8, 8), np.nan, "f4"), [], "not-finite"),
            (
                lambda: with_channels(pipeline_latents()["sky"], 16),
                ["--model", "sd-v1"],
                "latents-of-another-model",
            ),
            (
                lambda: packed(with_channels(pipeline_latents()["sky"], 16)),
                ["--model", "flux"],
                "packed-without-size",
            ),
        ],
    )
    def test_wrong_latents_are_named(self, latents, options: list[str], code: str) -> None:
        save_file({"latents": latents()}, "z.safetensors")
        assert code in codes("z.safetensors", *options)

    def test_packed_latents_with_their_size_are_well(self) -> None:
        save_file({"latents": packed(sixteen_channels())}, "z.safetensors")
        found = codes("z.safetensors", "--model", "flux", "--height", 192, "--width", 192)
        assert found == ["unknown-space"]

    def test_other_files(self) -> None:
        Path("pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        Path("words.txt").write_text("neither picture nor tensor\n")
        Image.new("RGB", (30, 17)).save("picture.png")
        Path("cut.png").write_bytes(Path("picture.png").read_bytes()[:45])
        assert codes("pointer.safetensors") == ["git-lfs-pointer"]
        assert codes("words.txt") == ["unreadable-file"]
        assert codes("picture.png") == ["picture-resized"]
        assert codes("cut.png") == ["unreadable-file"]

    def test_the_size_of_a_film_and_the_size_that_is_encoded(self) -> None:
        frames = [Image.new("RGB", (50, 38), (shade, 0, 0)) for shade in range(0, 250, 50)]
        frames[0].save("film.gif", save_all=True, append_images=frames[1:], duration=100)
        found = report("film.gif")
        assert found["facts"] == {"format": "image/gif", "frames": 5, "size": "50x38", "encoded as": "48x32"}
        assert codes("film.gif") == ["picture-resized"]
        assert report("film.gif", "--model", "wan-2.2-5b")["facts"]["encoded as"] == "48x32"
        assert report("film.gif", "--model", "sana")["findings"][-1]["text"].startswith("sana encodes pictures")
        assert codes("film.gif", "--model", "ltx-video") == ["picture-resized", "impossible-frames"]
        frames[0].save("four.gif", save_all=True, append_images=frames[1:4], duration=100)
        assert codes("four.gif", "--model", "wan-2.1") == ["picture-resized", "frames-dropped"]
        assert report("four.gif", "--model", "wan-2.1")["ok"]


class TestFolders:
    def test_the_starter_is_well(self) -> None:
        assert codes(VAE) == []
        shown = hybridge("doctor", VAE).stdout
        assert "nothing wrong was found" in shown
        assert "AutoencoderKL" in shown

    def test_broken_folders_are_named(self) -> None:
        for name in ("no-config", "no-weights", "pointer", "pickled", "variant", "odd"):
            shutil.copytree(VAE, name)
        weights = "diffusion_pytorch_model.safetensors"
        Path("no-config/config.json").unlink()
        Path("no-weights", weights).unlink()
        Path("pointer", weights).write_text("version https://git-lfs.github.com/spec/v1\n")
        Path("pickled", weights).rename("pickled/diffusion_pytorch_model.bin")
        Path("variant", weights).rename("variant/diffusion_pytorch_model.fp16.safetensors")
        config = json.loads(Path("odd/config.json").read_text())
        Path("odd/config.json").write_text(json.dumps({**config, "scaling_factor": 0.7, "force_upcast": True}))
        assert codes("no-config") == ["config-wrong"]
        assert codes("no-weights") == ["weights-incomplete"]
        assert codes("pointer") == ["git-lfs-pointer"]
        assert codes("pickled") == ["pickled-weights"]
        assert codes("variant") == ["only-a-variant"]
        assert codes("odd") == ["scaling-of-no-family", "float16-overflow-risk"]

    def test_a_vae_in_one_file(self) -> None:
        module = AutoencoderTAEHV(latent_channels=16)
        torch_save({name: one.half() for name, one in module.state_dict().items()}, "taew2_1.safetensors")
        found = report("taew2_1.safetensors")
        assert found["facts"]["class"] == "AutoencoderTAEHV"
        assert "wan-2.1" in found["facts"]["scaling"]
        assert found["findings"] == []

    def test_a_pipeline_without_its_text_encoder_is_named(self) -> None:
        shutil.copytree(VAE, "pipe/vae")
        index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
        Path("pipe/model_index.json").write_text(json.dumps(index))
        assert codes("pipe") == ["text-incomplete"]
        Path("pipe/model_index.json").write_text(json.dumps({"_class_name": "NobodysPipeline"}))
        assert codes("pipe") == ["text-not-served"]


class TestServers:
    def test_a_server_that_decodes(self, server: str) -> None:
        found = report(server)
        assert found["findings"] == []
        assert found["facts"]["decode by sd-v1"].startswith("worked")

    def test_a_server_by_the_name_of_its_profile(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HYBRIDGE_PROFILE_DESKTOP_URL", server)
        assert report("desktop")["facts"]["version"] == __version__

    def test_one_that_is_not_there(self) -> None:
        assert codes("http://127.0.0.1:1") == ["unreachable"]

    def test_a_model_that_it_has_not(self, server: str) -> None:
        found = report(server, "--model", "sd-v2")
        assert [finding["code"] for finding in found["findings"]] == ["model-failed"]
        assert found["findings"][0]["try"] == "sd-v1"

    @pytest.mark.parametrize(
        ("date", "expected"),
        [
            ("Mon, 30 Nov 2020 05:00:00 GMT", ["clock-differs"]),
            ("Mon, 30 Nov 2020 05:00:00 -0000", ["clock-differs"]),
            ("yesterday", []),
            ("Mon, 99 Nov 99999999 99:99:99 GMT", []),
            (None, []),
        ],
    )
    def test_clocks(self, date: str | None, expected: list[str]) -> None:
        with odd_server({"/": (200, {"version": __version__}), "/ready": (200, {})}, date) as address:
            assert codes(address) == expected

    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            (
                {"/v1/models": (200, {"models": [{"id": "gpt"}]}), "/": (200, {"version": __version__})},
                "not-hybridge",
            ),
            ({"/v1/models": (200, {"models": [5]}), "/": (200, {"version": __version__})}, "not-hybridge"),
            ({"/v1/models": (200, {"data": []})}, "not-hybridge"),
            ({"/v1/models": (429, {"error": "full", "code": "Overloaded"})}, "not-ready"),
            ({"/v1/models": (401, {"error": "key"})}, "key-needed"),
            ({"/": (200, {"version": "9.9"})}, "other-version"),
            ({"/": (200, {"version": __version__}), "/ready": (503, {})}, "not-ready"),
            ({"/": (200, {"version": __version__}), "/ready": None}, "unreachable"),
        ],
    )
    def test_odd_servers(self, answers: dict[str, Any], expected: str) -> None:
        with odd_server(answers) as address:
            assert codes(address) == [expected]

    def test_a_certificate_that_is_not_trusted(self, tmp_path: Path) -> None:
        own = SelfSigned(tmp_path)
        with odd_server({"/": (200, {"version": __version__})}, context=own.context()) as address:
            assert codes(address) == ["certificate-not-trusted"]
            assert codes(address, "--ca", own.certificate) == []

    def test_a_name_with_tls_in_it_is_not_a_certificate(self) -> None:
        assert codes("http://ssl-tls.localhost:1") == ["unreachable"]

    def test_this_machine_is_not_asked_through_a_proxy(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert codes(server) == []


@contextmanager
def odd_server(
    answers: dict[str, Any], date: str | None = None, context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server that gives these answers, status and JSON, or breaks off for None."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = {"/v1/models": (200, {"models": []}), "/ready": (200, {}), **answers}.get(self.path, (404, {}))
            if answer is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, document = answer
            body = json.dumps(document).encode()
            self.send_response_only(status)
            if date is not None:
                self.send_header("date", date)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        if context is not None:
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http{'' if context is None else 's'}://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()
