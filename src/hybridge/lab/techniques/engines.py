"""The UNet in another engine: OpenVINO, ONNX Runtime, TensorRT."""

from __future__ import annotations

from .technique import Technique

ROWS: tuple[Technique, ...] = ()
