"""Small models with random weights, in the hub's layout on disk, and a real server in front of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hybridge.engine import Engine, EngineOptions
from hybridge.models import CATALOGUE, ModelSpec
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

BLOCKS = 4


def small_kl(latent_channels: int, *, seed: int = 0, quant_conv: bool = True, **config: Any) -> AutoencoderKL:
    """An AutoencoderKL of the real layout, f8, with 8 to 16 channels instead of 128 to 512."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * BLOCKS,
        up_block_types=["UpDecoderBlock2D"] * BLOCKS,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
        **config,
    ).eval()


def small_tiny(latent_channels: int, *, seed: int = 0) -> AutoencoderTiny:
    """An AutoencoderTiny of the real layout, with 8 channels instead of 64."""
    torch.manual_seed(seed)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        latent_channels=latent_channels,
    ).eval()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How hard the fault tests try; what CI has time for unless told otherwise."""
    parser.addoption("--malformed", type=int, default=300, help="malformed requests to send")
    parser.addoption("--hang-up-s", type=float, default=3.0, help="seconds of clients that hang up at random")


def in_strips(engine: Engine) -> Engine:
    """The same for small pictures too, which would run as they are: there must be strips to stop between."""
    return replace(engine, modes=("strips", "lean", "recompute"))


@pytest.fixture(scope="session")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """Rows of the catalogue whose sources are small models on disk."""
    root = tmp_path_factory.mktemp("models")
    modules = {
        "sd-v1": small_kl(4, seed=1),
        "sdxl": small_kl(4, seed=2, scaling_factor=0.13025, force_upcast=False),
        "flux": small_kl(16, seed=3, quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159),
        "taesd": small_tiny(4, seed=4),
    }
    for name, module in modules.items():
        module.save_pretrained(root / name)
    return {name: replace(CATALOGUE[name], source=str(root / name), subfolder=None) for name in modules}


@pytest.fixture(scope="session")
def engines(specs: dict[str, ModelSpec]) -> dict[str, Engine]:
    """An engine for each, in float32 on the CPU, that gives diffusers' own bits."""
    options = EngineOptions(device="cpu", exactness="bitwise")
    return {name: Engine.load(spec, options) for name, spec in specs.items()}


@pytest.fixture(scope="session")
def server(engines: dict[str, Engine]) -> Iterator[str]:
    """The address of a server with all of them."""
    with running(create_app(LocalBackend(engines))) as address:
        yield address


@pytest.fixture(scope="session")
def studies_share_a_process() -> Iterator[None]:
    """All studies fork their measurements from one process."""
    import shared_fork_server

    from hybridge.lab.studies import runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ForkServer", shared_fork_server.SharedForkServer)
        yield
    shared_fork_server.close_all()


@pytest.fixture
def photograph() -> Path:
    """The photograph that the package ships."""
    import hybridge

    return Path(hybridge.__file__).parent / "assets" / "photograph.jpg"
