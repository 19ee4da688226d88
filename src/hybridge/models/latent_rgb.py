"""Approximate a picture from latents with one matrix, without a network.

The matrix has a row for each latent channel, and columns for red, green and blue in [-1, 1]; latents are
normalised, as in pipelines.  The picture has the size of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LatentRgb:
    """``rgb = latents · factors + bias``.

    Attributes:
        factors: (channels, 3).
        bias: (3,).
        origin: The source of the numbers.
    """

    factors: Sequence[tuple[float, float, float]]
    bias: tuple[float, float, float]
    origin: str


_NO_BIAS = (0.0, 0.0, 0.0)
_INVOKE = "published by InvokeAI (Apache-2.0), invokeai/app/util/step_callback.py"

_SDXL = LatentRgb(
    (
        (0.3816, 0.4930, 0.5320),
        (-0.3753, 0.1631, 0.1739),
        (0.1770, 0.3588, -0.2048),
        (-0.4350, -0.2644, -0.4289),
    ),
    _NO_BIAS,
    _INVOKE,
)

#: The matrices by the name of the model of the latents.
LATENT_RGB: dict[str, LatentRgb] = {
    "starter": LatentRgb(
        (
            (0.5654, 0.1376, -0.0307),
            (0.2096, 0.2988, 0.0973),
            (-0.0355, 0.2747, 0.5618),
            (0.0127, -0.0211, -0.029),
        ),
        (-0.116, -0.1242, -0.2251),
        "least squares, training/latent_rgb.py",
    ),
    "sd-v1": LatentRgb(
        (
            (0.3444, 0.1385, 0.0670),
            (0.1247, 0.4027, 0.1494),
            (-0.3192, 0.2513, 0.2103),
            (-0.1307, -0.1874, -0.7445),
        ),
        _NO_BIAS,
        _INVOKE,
    ),
    "sdxl": _SDXL,
    "sdxl-original": _SDXL,
    "sd3": LatentRgb(
        (
            (-0.05240681, 0.03251581, 0.0749016),
            (-0.0580572, 0.00759826, 0.05729818),
            (0.16144888, 0.01270368, -0.03768577),
            (0.14418615, 0.08460266, 0.15941818),
            (0.04894035, 0.0056485, -0.06686988),
            (0.05187166, 0.19222395, 0.06261094),
            (0.1539433, 0.04818359, 0.07103094),
            (-0.08601796, 0.09013458, 0.10893912),
            (-0.12398469, -0.06766567, 0.0033688),
            (-0.0439737, 0.07825329, 0.02258823),
            (0.03101129, 0.06382551, 0.07753657),
            (-0.01315361, 0.08554491, -0.08772475),
            (0.06464487, 0.05914605, 0.13262741),
            (-0.07863674, -0.02261737, -0.12761454),
            (-0.09923835, -0.08010759, -0.06264447),
            (-0.03392309, -0.0804029, -0.06078822),
        ),
        _NO_BIAS,
        _INVOKE,
    ),
    "flux": LatentRgb(
        (
            (-0.0412, 0.0149, 0.0521),
            (0.0056, 0.0291, 0.0768),
            (0.0342, -0.0681, -0.0427),
            (-0.0258, 0.0092, 0.0463),
            (0.0863, 0.0784, 0.0547),
            (-0.0017, 0.0402, 0.0158),
            (0.0501, 0.1058, 0.1152),
            (-0.0209, -0.0218, -0.0329),
            (-0.0314, 0.0083, 0.0896),
            (0.0851, 0.0665, -0.0472),
            (-0.0534, 0.0238, -0.0024),
            (0.0452, -0.0026, 0.0048),
            (0.0892, 0.0831, 0.0881),
            (-0.1117, -0.0304, -0.0789),
            (0.0027, -0.0479, -0.0043),
            (-0.1146, -0.0827, -0.0598),
        ),
        _NO_BIAS,
        _INVOKE,
    ),
}
