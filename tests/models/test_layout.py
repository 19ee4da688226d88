import pytest

from hybridge.errors import RequestError
from hybridge.models import latents_layout, look_up

SD, FLUX = look_up("sd-v1"), look_up("flux")


@pytest.mark.parametrize(
    ("spec", "shape", "height", "width", "expected"),
    [
        (SD, (2, 4, 64, 48), None, None, (2, 4, 64, 48, False)),
        # ComfyUI's nodes send wrong sides for videos, SD.Next right ones for pictures: with four axes none counts.
        (SD, (1, 4, 64, 64), 24, 512, (1, 4, 64, 64, False)),
        (FLUX, (1, 4096, 64), 1024, 1024, (1, 16, 128, 128, True)),
        (FLUX, (3, 6, 64), 32, 48, (3, 16, 4, 6, True)),
        # 1000 is no multiple of 16: floored, as diffusers does.
        (FLUX, (1, 62 * 62, 64), 1000, 1000, (1, 16, 124, 124, True)),
        # SD.Next sends one item of Flux without its batch axis.
        (FLUX, (16, 128, 128), 1024, 1024, (1, 16, 128, 128, False)),
        (FLUX, (16, 151, 173), None, None, (1, 16, 151, 173, False)),
        # Packed works for four channels, too.
        (SD, (1, 16, 16), 64, 64, (1, 4, 8, 8, True)),
    ],
)
def test_layouts(spec, shape, height, width, expected) -> None:
    layout = latents_layout(shape, spec, height, width)
    assert (layout.batch, layout.channels, layout.height, layout.width, layout.is_packed) == expected


def test_content_decides_where_three_axes_could_be_both() -> None:
    # 16 tokens of 64 channels, and also 16 channels of width 64: only the first fits the sides.
    assert latents_layout((16, 16, 64), FLUX, 64, 64).is_packed
    assert not latents_layout((16, 16, 64), FLUX, 128, 512).is_packed


@pytest.mark.parametrize(
    ("spec", "shape", "height", "width", "message"),
    [
        (SD, (1, 16, 64, 64), None, None, "16 latent channels"),
        (FLUX, (1, 4096, 64), None, None, "height and width"),
        (FLUX, (1, 4096, 64), 512, 512, "1024 tokens"),
        (SD, (1, 3, 512, 512), None, None, "encode endpoint"),
        (SD, (1, 16, 3, 40, 64), None, None, "video"),
        (SD, (64, 64), None, None, "batch axis"),
    ],
)
def test_what_fits_no_layout_is_refused_with_a_way_out(spec, shape, height, width, message) -> None:
    with pytest.raises(RequestError, match=message):
        latents_layout(shape, spec, height, width)


def test_the_picture_and_its_pixels() -> None:
    layout = latents_layout((2, 4, 64, 48), SD, None, None)
    assert layout.picture == (512, 384)
    assert layout.pixels == 2 * 512 * 384
