"""The extension of Forge, in an imitation of what it sees of Forge, as of its revision 1f56acf.

With ``FORGE_DIR``, a folder with Forge's source, around its own VAE and its own patcher of models.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

SCRIPT = Path(__file__).parents[2] / "integrations" / "forge" / "scripts" / "hybridge_vae.py"
HERE = "decoded or encoded here"


class Module(torch.nn.Module):
    """What Forge's own VAE runs: its pictures are black, its latents are 7."""

    config = SimpleNamespace(down_block_types=[None] * 4, latent_channels=4)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.full((samples.shape[0], 3, 8 * samples.shape[2], 8 * samples.shape[3]), -1.0)

    def encode(self, pixels: torch.Tensor, regulation: Any = None) -> torch.Tensor:
        return torch.full((pixels.shape[0], 4, pixels.shape[2] // 8, pixels.shape[3] // 8), 7.0)


def is_here(made: Any) -> bool:
    """Whether Forge's own VAE ran."""
    return bool(((made == 0) | (made == 7)).all()) if isinstance(made, torch.Tensor) else made == HERE


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = os.environ.get("FORGE_DIR")
    if not folder:
        return Vae()
    cpu, made = torch.device("cpu"), {}
    for name in ("", ".memory_management", ".utils", ".operations", ".patcher", ".patcher.lora"):
        made[name] = ModuleType(f"backend{name}")
        made[name].__path__ = []
        monkeypatch.setitem(sys.modules, f"backend{name}", made[name])
    memory = made[".memory_management"]
    memory.vae_device = memory.vae_offload_device = memory.intermediate_device = lambda: cpu
    memory.vae_dtype, memory.dtype_size, memory.module_size = lambda: torch.float32, lambda _: 4, lambda _: 1
    memory.VAE_ALWAYS_TILED, memory.OOM_EXCEPTION = False, MemoryError
    memory.load_models_gpu, memory.get_free_memory = lambda *_, **__: None, lambda _: 2**30
    made[".patcher.lora"].merge_lora_to_model_weight = None
    made[""].memory_management, made[""].utils, made[""].operations = memory, made[".utils"], made[".operations"]
    for name in ("base", "vae"):
        path = Path(folder, "backend", "patcher", f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"backend.patcher.{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module.VAE(Module())


class Patcher:
    """Its options are copied deeply, so nothing that cannot be copied may be in them."""

    def __init__(self) -> None:
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Patcher:
        made = Patcher()
        made.model_options = copy.deepcopy(self.model_options)
        return made


class Vae:
    """Forge's VAE, which says that it ran instead of decoding."""

    output_device = torch.device("cpu")

    def __init__(self) -> None:
        self.patcher = Patcher()

    def clone(self) -> Vae:
        made = type(self)()
        made.patcher = self.patcher.clone()
        return made

    def decode_inner(self, samples: torch.Tensor) -> Any:
        return HERE

    def decode(self, samples: torch.Tensor) -> Any:
        wrapper = self.patcher.model_options.get("model_vae_decode_wrapper", None)
        return self.decode_inner(samples) if wrapper is None else wrapper(self.decode_inner, samples)

    def encode(self, pixels: torch.Tensor) -> Any:
        wrapper = self.patcher.model_options.get("model_vae_encode_wrapper", None)
        return HERE if wrapper is None else wrapper(lambda _: HERE, pixels)


class NeoVae:
    """That of Forge Neo, which calls no wrapper."""

    def __init__(self) -> None:
        self.patcher = Patcher()

    def decode(self, samples: torch.Tensor) -> Any:
        return HERE


class ReForgeVae(NeoVae):
    """That of reForge, which has the method that wrappers are given, and calls neither."""

    def decode_inner(self, samples: torch.Tensor) -> Any:
        return HERE


@pytest.fixture
def forge(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Forge with the extension: its settings, and the script that it calls."""
    registered: list[Any] = []
    options = SimpleNamespace(data={}, labels={})
    options.add_option = options.labels.__setitem__
    modules = ModuleType("modules")
    modules.script_callbacks = SimpleNamespace(on_ui_settings=registered.append)
    modules.shared = SimpleNamespace(opts=options, OptionInfo=lambda default, label, section: (default, section))
    modules.scripts = SimpleNamespace(Script=object, AlwaysVisible=object())
    monkeypatch.setitem(sys.modules, "modules", modules)
    spec = importlib.util.spec_from_file_location("hybridge_vae.py", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for one in registered:
        one()
    assert list(options.labels) == ["hybridge_server"]
    clients, client_of = [], module.client_of

    def kept(server: str, key: int) -> Any:
        clients.append(client_of(server, key))
        return clients[-1]

    module.client_of = kept
    yield SimpleNamespace(opts=options, script=module.HybridgeVae())
    for client in clients:
        client.close()


def loaded(vae: Any, **flags: bool) -> SimpleNamespace:
    """What Forge processes: a model with a VAE."""
    objects = SimpleNamespace(vae=vae)
    return SimpleNamespace(sd_model=SimpleNamespace(forge_objects=objects, is_sd1=False, is_sdxl=False, **flags))


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def test_decoding(
    forge: SimpleNamespace, vae: Any, server: str, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the name of a profile, as after `hybridge join`."""
    monkeypatch.setenv("HYBRIDGE_PROFILE_DESKTOP_URL", server)
    forge.opts.data["hybridge_server"] = "desktop"
    p, z = loaded(vae), latents(2, 4, 8, 12)
    p.sd_model.is_sdxl = True
    before = p.sd_model.forge_objects.vae
    forge.script.process_before_every_sampling(p, x=None)
    found = p.sd_model.forge_objects.vae.decode(z)
    with torch.inference_mode():
        expected = (engines["sdxl"].module.decode(z).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert is_here(before.decode(z))  # Forge's own VAE is as it was


def test_a_model_that_the_server_infers(forge: SimpleNamespace, vae: Any, server: str, engines: Any) -> None:
    forge.opts.data["hybridge_server"] = server
    p, z = loaded(vae), latents(1, 16, 4, 4)  # Flux has no flag
    forge.script.process(p)
    found = p.sd_model.forge_objects.vae.decode(z)
    with torch.inference_mode():
        expected = (engines["flux"].module.decode(z).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("is_8_bit", [True, False])
def test_encoding_draws_a_sample(
    forge: SimpleNamespace, vae: Any, server: str, engines: Any, is_8_bit: bool
) -> None:
    forge.opts.data["hybridge_server"] = server
    p = loaded(vae)
    p.sd_model.is_sd1 = True
    forge.script.process(p)
    pixels = torch.rand(1, 64, 96, 4, generator=torch.Generator().manual_seed(5))
    pixels = (pixels * 255).round() / 255 if is_8_bit else pixels
    torch.manual_seed(1)
    found = p.sd_model.forge_objects.vae.encode(pixels)
    torch.manual_seed(1)
    again = p.sd_model.forge_objects.vae.encode(pixels)
    with torch.inference_mode():
        posterior = engines["sd-v1"].module.encode(pixels[..., :3].movedim(-1, 1) * 2 - 1).latent_dist
    assert torch.equal(found, again)
    assert not torch.allclose(found, posterior.mode(), atol=1e-5)
    assert ((found - posterior.mean).abs() <= 6 * posterior.std + 1e-4).all()


def test_another_extension_s_posterior(forge: SimpleNamespace, vae: Any, server: str) -> None:
    forge.opts.data["hybridge_server"] = server
    vae.patcher.model_options["model_vae_regulation"] = lambda posterior: posterior
    p = loaded(vae)
    forge.script.process(p)
    assert is_here(p.sd_model.forge_objects.vae.encode(torch.zeros(1, 8, 8, 3)))


def test_another_extension_s_decoding(forge: SimpleNamespace, vae: Any, server: str) -> None:
    forge.opts.data["hybridge_server"] = server
    vae.patcher.model_options["model_vae_decode_wrapper"] = lambda inner, samples: "theirs"
    p = loaded(vae)
    forge.script.process(p)
    assert p.sd_model.forge_objects.vae.decode(torch.zeros(1, 4, 2, 2)) == "theirs"


def test_the_setting_changes(forge: SimpleNamespace, vae: Any, server: str, engines: Any) -> None:
    p, z = loaded(vae), latents(1, 4, 4, 4)
    p.sd_model.is_sd1 = True
    with running(create_app(LocalBackend({"sdxl": engines["sdxl"]}))) as other:
        for address, name in ((other, "sdxl"), (server, "sd-v1")):
            forge.opts.data["hybridge_server"] = address
            forge.script.process(p)
            with torch.inference_mode():
                expected = (engines[name].module.decode(z).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
            assert torch.allclose(p.sd_model.forge_objects.vae.decode(z), expected, atol=1e-5)


def test_the_profile_changes(
    forge: SimpleNamespace, vae: Any, server: str, engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after another `hybridge join`: the setting stays, what it means does not."""
    forge.opts.data["hybridge_server"] = "desktop"
    p, z = loaded(vae), latents(1, 4, 4, 4)
    p.sd_model.is_sd1 = True
    with running(create_app(LocalBackend({"sdxl": engines["sdxl"]}))) as other:
        for address, name in ((other, "sdxl"), (server, "sd-v1")):
            monkeypatch.setenv("HYBRIDGE_PROFILE_DESKTOP_URL", address)
            forge.script.process(p)
            with torch.inference_mode():
                expected = (engines[name].module.decode(z).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
            assert torch.allclose(p.sd_model.forge_objects.vae.decode(z), expected, atol=1e-5)
    monkeypatch.delenv("HYBRIDGE_PROFILE_DESKTOP_URL")
    forge.script.process(p)  # it is gone; the picture is made with what there was
    assert torch.allclose(p.sd_model.forge_objects.vae.decode(z), expected, atol=1e-5)


def test_switched_off_again(forge: SimpleNamespace, vae: Any, server: str) -> None:
    p = loaded(vae)
    for _ in range(2):  # called for each picture, and the wrappers are set once
        forge.opts.data["hybridge_server"] = server
        forge.script.process(p)
        wrapped = p.sd_model.forge_objects.vae
        forge.script.process_before_every_sampling(p)
        assert p.sd_model.forge_objects.vae is wrapped
    forge.opts.data["hybridge_server"] = ""
    forge.script.process(p)
    assert is_here(p.sd_model.forge_objects.vae.decode(latents(1, 4, 4, 4)))


def test_where_the_server_fails_forge_decodes(
    forge: SimpleNamespace, vae: Any, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    forge.opts.data["hybridge_server"] = server
    p = loaded(vae)
    forge.script.process(p)
    assert is_here(p.sd_model.forge_objects.vae.decode(latents(1, 7, 4, 4)))
    assert "no model here has such latents" in caplog.text
    assert is_here(p.sd_model.forge_objects.vae.encode(torch.full((1, 4, 4, 3), 0.123)))
    assert "encoded here: " in caplog.text


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:9", "the VAE stays here: "),
        ("nobody", "no profile has this name"),
        ("http://me:a-secret@127.0.0.1", "no key in the setting"),
        ("http://127.0.0.1?key=a-secret", "no key in the setting"),
        ("http://127.0.0.1/k/a-secret/", "no key in the setting"),
    ],
)
def test_without_a_server(
    forge: SimpleNamespace,
    vae: Any,
    caplog: pytest.LogCaptureFixture,
    address: str,
    said: str,
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HYBRIDGE_PROFILES", str(tmp_path / "none"))
    forge.opts.data["hybridge_server"] = address
    p = loaded(vae)
    forge.script.process(p)
    assert is_here(p.sd_model.forge_objects.vae.decode(latents(1, 4, 4, 4)))
    assert said in caplog.text
    assert "a-secret" not in caplog.text


@pytest.mark.parametrize("kind", [NeoVae, ReForgeVae])
def test_forges_that_call_no_wrapper(
    forge: SimpleNamespace, server: str, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    forge.opts.data["hybridge_server"] = server
    forge.script.process(loaded(kind()))
    assert "this Forge calls no wrappers" in caplog.text


def test_it_stays_thin() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 100
