"""Arguments of ``hybridge serve``: which parts of a model each stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from text_servers import case_of, saved

from hybridge.engine.served_parts import resolve_parts
from hybridge.errors import HybridgeError, ModelUnavailable, UnknownModel


@pytest.mark.parametrize(
    ("argument", "vae", "text"),
    [
        ("sdxl", "madebyollin/sdxl-vae-fp16-fix", "StableDiffusionXLPipeline"),
        ("sdxl:vae", "madebyollin/sdxl-vae-fp16-fix", None),
        ("sdxl:text", None, "StableDiffusionXLPipeline"),
        ("taesd", "madebyollin/taesd", None),
        ("flux2", "black-forest-labs/FLUX.2-dev", "Flux2Pipeline"),
        ("z-image", "black-forest-labs/FLUX.1-schnell", "ZImagePipeline"),
        ("hidream:vae", "black-forest-labs/FLUX.1-schnell", None),
    ],
)
def test_names_of_the_catalogue(argument: str, vae: str | None, text: str | None) -> None:
    parts = resolve_parts(argument)
    assert (parts.vae.source if parts.vae else None) == vae
    assert (parts.text.class_name if parts.text else None) == text
    assert parts.name == argument.partition(":")[0]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("sdxll", "Try: sdxl"),
        ("taesd:text", "taesd has no part text"),
        ("sdxl:unet", "sdxl has no part unet"),
    ],
)
def test_names_that_are_not_there(argument: str, said: str) -> None:
    with pytest.raises(UnknownModel, match=said):
        resolve_parts(argument)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    saved(case_of("StableDiffusionPipeline"), folder)
    return folder


def test_a_whole_pipeline_serves_all_that_it_has(folder: Path) -> None:
    whole = resolve_parts(f"mine={folder / 'whole'}")
    assert whole.vae is not None
    assert whole.text is not None
    assert (whole.vae.class_name, whole.text.class_name) == ("AutoencoderKL", "StableDiffusionPipeline")
    assert resolve_parts(f"mine={folder / 'whole'}:vae").text is None
    alone = resolve_parts(f"mine={folder / 'whole'}:text")
    assert alone.vae is None
    assert alone.text == whole.text


def test_a_pipeline_without_a_vae_serves_its_text_encoders(folder: Path) -> None:
    parts = resolve_parts(f"mine={folder / 'text'}")
    assert parts.vae is None
    assert parts.text is not None


def test_a_folder_of_a_vae_is_one_still(folder: Path) -> None:
    parts = resolve_parts(f"mine={folder / 'whole' / 'vae'}")
    assert parts.vae is not None
    assert parts.text is None


def test_a_pipeline_of_which_nothing_can_be_served_says_why(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    with pytest.raises(ModelUnavailable, match=r"no text encoders .* saw _class_name DDPM"):
        resolve_parts(f"mine={tmp_path}")
    with pytest.raises(HybridgeError):
        resolve_parts(f"mine={tmp_path}:text")
