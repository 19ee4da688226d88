"""Layout of the UNet, on the tiny pipeline."""

from __future__ import annotations

import numpy as np

from hybridge.lab.techniques.catalogue import named
from hybridge.lab.techniques.rig import Rig


def test_channels_last_turns_every_kernel_and_back(rig: Rig) -> None:
    before = rig.picture("a cat in the rain", seed=0)
    (technique,) = named(["channels-last"])

    applied = technique.apply(rig)
    with applied.witness() as proof:
        turned = rig.picture("a cat in the rain", seed=0)
    assert proof().took_effect, proof().evidence
    np.testing.assert_allclose(turned, before, atol=1e-5)

    assert applied.undo is not None
    applied.undo()
    with applied.witness() as proof:
        again = rig.picture("a cat in the rain", seed=0)
    assert not proof().took_effect
    assert np.array_equal(again, before)
