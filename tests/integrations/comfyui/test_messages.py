"""What users read when something is wrong, and what nothing that ComfyUI stores may have in it."""

from __future__ import annotations

import ast
import http.server
import json
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import small_kl

from hybridge.engine import Engine
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.middleware.key_file import KeyRing, hash_key
from hybridge.server.process.server import running

PACK = Path(__file__).parents[3] / "integrations" / "comfyui"
KEY = "hk-secret-of-the-test"

Node = Callable[..., tuple[Any, ...]]
MakeProfile = Callable[..., str]


def history_of(error: BaseException, inputs: dict[str, Any]) -> str:
    """What ComfyUI puts into its history of a failed node, and what it logs."""
    frames = traceback.format_tb(error.__traceback__)
    shown = {name: [str(value)] for name, value in inputs.items()}
    return json.dumps([str(error), frames, shown]) + "".join(traceback.format_exception(error))


@contextmanager
def answering(status: int, body: bytes, kind: str = "application/json") -> Iterator[str]:
    """A server that answers everything with the same."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def refused(node: Node, profile: str, address: str, **inputs: Any) -> str:
    """The sentence of a failed node; nothing that is stored has the address or the key."""
    with pytest.raises(RuntimeError) as error:
        node("HybridgeVAE", profile=profile, **inputs)
    stored = history_of(error.value, {"profile": profile, **inputs})
    for secret in (KEY, address, address.partition("//")[2]):
        assert secret not in stored
    return str(error.value)


def test_the_server_is_down(node: Node, profile: MakeProfile) -> None:
    with answering(200, b"{}") as address:
        pass  # it is gone by now
    assert "the server 'desktop' cannot be reached" in refused(node, profile(address), address)


def test_the_key_is_wrong(node: Node, profile: MakeProfile, engines: dict[str, Engine]) -> None:
    backend = LocalBackend({"sd-v1": engines["sd-v1"]})
    with running(create_app(backend, keys=KeyRing({"someone": hash_key("another-key")}))) as address:
        told = refused(node, profile(address), address)
    assert "the server 'desktop' does not let this caller in" in told


def test_the_model_is_not_there(node: Node, profile: MakeProfile, server: str) -> None:
    told = refused(node, profile(server), server, model="sdxl-turbo")
    assert "has no model 'sdxl-turbo'. It has: sd-v1, sdxl, flux, taesd" in told
    told = refused(node, profile(server), server)
    assert "several models: write one of sd-v1, sdxl, flux, taesd into `model`" in told


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"error": "not found", "code": "http-404"}', "application/json"),
        (200, b"<html>router</html>", "text/html"),
        (200, b'{"models": 3}', "application/json"),
        (200, b'{"models": [3]}', "application/json"),
        (200, b'{"models": [{"tasks": ["decode"]}]}', "application/json"),
        (
            200,
            b'{"models": [{"name": "old", "tasks": ["decode"], "class": "AutoencoderKL"}]}',
            "application/json",
        ),
    ],
)
def test_another_server_answers(node: Node, profile: MakeProfile, status: int, body: bytes, kind: str) -> None:
    with answering(status, body, kind) as address:
        told = refused(node, profile(address), address)
    assert "the server 'desktop'" in told.lower()
    assert any(said in told for said in ("version", "this is not a hybridge server", "has no model that can"))


def test_an_address_in_the_widget_is_refused_before_anything_runs(pack: ModuleType, node: Node) -> None:
    nodes = sys.modules[f"{pack.__name__}.nodes"]
    for pasted in ("http://box:8000", f"https://user:{KEY}@box", f"box:8000?key={KEY}"):
        told = nodes.HybridgeVAE.validate_inputs(pasted)
        assert "takes the name of a profile" in told
        assert KEY not in told
    assert nodes.HybridgeVAE.validate_inputs("desktop") is True
    assert nodes.HybridgeVAE.validate_inputs("") is True
    assert nodes.HybridgeVAE.validate_inputs() is True  # linked from another node


def test_profiles_that_do_not_work(
    node: Node, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="no profile of a server yet"):
        node("HybridgeVAE", profile="")
    name = profile("http://box-7:8000")
    with pytest.raises(RuntimeError, match="no profile has this name: expected desktop"):
        node("HybridgeVAE", profile="desktp")
    profile("http://box-8:8000", "laptop")
    with pytest.raises(RuntimeError, match="several profiles: write one of desktop, laptop"):
        node("HybridgeVAE", profile="")
    broken = tmp_path / "profiles.json"
    broken.write_text('{"desktop": ')
    broken.chmod(0o600)
    monkeypatch.delenv("HYBRIDGE_PROFILE_DESKTOP_URL")
    monkeypatch.delenv("HYBRIDGE_PROFILE_DESKTOP_KEY")
    with pytest.raises(RuntimeError, match="is not JSON"):
        node("HybridgeVAE", profile=name)


def test_objects_that_comfyui_prints_name_the_profile_alone(node: Node, profile: MakeProfile, server: str) -> None:
    (vae,) = node("HybridgeVAE", profile=profile(server), model="sd-v1")
    assert repr(vae) == str(vae) == "RemoteVAE('sd-v1' on 'desktop')"
    with pytest.raises(RuntimeError) as error:
        vae.decode(torch.full((1, 4, 8, 8), float("nan")))
    stored = history_of(error.value, {"vae": vae})
    assert server not in stored
    assert server.rpartition(":")[2] not in stored
    assert KEY not in stored


@pytest.mark.parametrize("host", ["gpu-box.local", "192.168.1.7", "[fe80::1]"])
def test_addresses_in_texts_are_replaced(pack: ModuleType, host: str) -> None:
    without = sys.modules[f"{pack.__name__}.messages"].without_addresses
    text = f"http://{host}:8000 answered; {host.strip('[]')} is not known; http://other/?key=1 neither"
    assert without(text, "desktop", f"http://{host}:8000") == (
        "the server 'desktop' answered; the server 'desktop' is not known; (an address) neither"
    )


def test_warnings_reach_the_log_without_an_address(
    node: Node, profile: MakeProfile, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    (vae,) = node("HybridgeVAE", profile=profile(server), model="sd-v1")
    scaled = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    vae.decode(scaled)
    assert "hybridge, desktop: the latents were taken as the VAE's own" in caplog.text
    assert server.partition("//")[2] not in caplog.text


# ------------------------------------------------------------------------------------------------ the cache


def test_the_fingerprint_follows_the_weights(
    pack: ModuleType, profile: MakeProfile, engines: dict[str, Engine], tmp_path: Path
) -> None:
    nodes = sys.modules[f"{pack.__name__}.nodes"]

    def fingerprint() -> str:
        return nodes.HybridgeVAE.fingerprint_inputs(profile="desktop", model="", precision="8-bit")

    def served(folder: Path) -> Any:
        from hybridge.engine import EngineOptions, resolve

        engine = Engine.load(resolve(f"mine={folder}"), EngineOptions(device="cpu"))
        return running(create_app(LocalBackend({"mine": engine})))

    for name, seed in (("one", 1), ("two", 2)):
        small_kl(4, seed=seed).save_pretrained(tmp_path / name)
    with served(tmp_path / "one") as address:
        profile(address)
        first = fingerprint()
        assert fingerprint() == first != ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[f"{pack.__name__}.servers"], "_LOOK_S", 0.2)
        assert fingerprint() == first  # the server is gone: what was made stays
    with served(tmp_path / "two") as address:
        profile(address)
        second = fingerprint()
    with served(tmp_path / "one") as address:
        profile(address)
        assert fingerprint() == first != second


# ------------------------------------------------------------------------------------------------ the pack


def test_the_pack_imports_only_what_comfyui_has_and_the_bare_client() -> None:
    """Also not other parts of hybridge: these would load diffusers."""
    allowed = {"torch", "comfy", "comfy_api", "folder_paths", "numpy", *sys.stdlib_module_names}
    for path in PACK.glob("*.py"):
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(statement, ast.Import):
                names = [alias.name for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                names = [statement.module or ""]
            for name in names:
                is_client = name.startswith(("hybridge.client", "hybridge.protocol", "hybridge.errors"))
                assert is_client or name.partition(".")[0] in allowed, f"{path.name} imports {name}"


def test_the_registry_finds_what_it_needs() -> None:
    document = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))
    project, registry = document["project"], document["tool"]["comfy"]
    assert project["dependencies"] == ["hybridge"]
    assert {"name", "version", "description", "license", "requires-python"} <= set(project)
    assert {"PublisherId", "DisplayName", "Icon", "requires-comfyui"} <= set(registry)
    assert (PACK / "icon.svg").is_file()
