import pytest

from hybridge.errors import ModelUnavailable, UnknownModel
from hybridge.models import CATALOGUE, look_up, parent_of_tiny, spec_from_config


@pytest.mark.parametrize(
    ("name", "channels", "scaling", "shift"),
    [
        ("sd-v1", 4, 0.18215, 0.0),
        ("sdxl", 4, 0.13025, 0.0),
        ("sdxl-original", 4, 0.13025, 0.0),
        ("sd3", 16, 1.5305, 0.0609),
        ("flux", 16, 0.3611, 0.1159),
    ],
)
def test_factors_are_those_of_the_published_configs(name: str, channels: int, scaling: float, shift: float) -> None:
    spec = look_up(name)
    assert spec.latent_channels == channels
    assert (spec.normalisation.scaling_factor, spec.normalisation.shift_factor) == (scaling, shift)


@pytest.mark.parametrize("name", [name for name, spec in CATALOGUE.items() if spec.kind == "tiny"])
def test_a_tiny_autoencoder_has_its_parents_latents(name: str) -> None:
    tiny = CATALOGUE[name]
    parent = CATALOGUE[tiny.parent or ""]
    assert tiny.normalisation == parent.normalisation
    assert tiny.latent_channels == parent.latent_channels


def test_original_sdxl_never_runs_in_float16() -> None:
    assert look_up("sdxl-original").half is None
    assert look_up("sdxl").half == "float16"


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UnknownModel, match="Try: sdxl"):
        look_up("sdxll")


def test_a_config_without_factors_has_diffusers_defaults() -> None:
    spec = spec_from_config("mine", "somebody/vae", None, {"_class_name": "AutoencoderKL", "latent_channels": 4})
    assert spec.normalisation.scaling_factor == 0.18215
    assert spec.half == "bfloat16"


def test_force_upcast_forbids_half_precision() -> None:
    config = {"_class_name": "AutoencoderKL", "force_upcast": True, "block_out_channels": [32, 32]}
    spec = spec_from_config("mine", "x", None, config)
    assert spec.half is None
    assert spec.spatial_factor == 2


def test_another_class_is_refused_with_its_name() -> None:
    with pytest.raises(ModelUnavailable, match="AutoencoderOobleck"):
        spec_from_config("sound", "x/y", None, {"_class_name": "AutoencoderOobleck"})


def test_a_video_model_is_told_by_its_config() -> None:
    spec = spec_from_config("wan", "x/y", None, {"_class_name": "AutoencoderKLWan"})
    assert (spec.latent_channels, spec.spatial_factor, spec.temporal_factor) == (16, 8, 4)
    assert spec.frames.frames_out(21) == 81
    assert spec.frames.latent_frames(81) == 21


def test_pictures_have_three_channels() -> None:
    """Depth or sound would be answered as colours."""
    config = {"_class_name": "AutoencoderKL", "latent_channels": 8, "in_channels": 1, "out_channels": 1}
    with pytest.raises(ModelUnavailable, match=r"saw AutoencoderKL with in_channels 1.*expected 3 of both"):
        spec_from_config("sound", "x/y", None, config)


def test_the_parent_of_a_tiny_autoencoder_is_told_by_its_name() -> None:
    parent = parent_of_tiny("somebody/taesdxl")
    assert parent is not None
    assert parent.name == "sdxl"
    assert parent_of_tiny("somebody/mine") is None
