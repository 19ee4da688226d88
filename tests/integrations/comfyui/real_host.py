"""A real ComfyUI for the scripts beside this file: imported from ``COMFYUI_DIR``, on the processor.

Importing this prepares ComfyUI, so it comes before any import of ComfyUI's.
"""

# ruff: noqa: E402 - ComfyUI reads the command line and finds torchvision when it is imported

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from real_stand_ins import find_stand_ins
from transformers import CLIPTextModel, CLIPTokenizer

__all__ = ["FOLDERS", "LEVEL", "PACK", "STUBS", "CLIPTextModel", "CLIPTokenizer", "compare", "pack_module"]

#: What the command line names: folders of models.
FOLDERS = [Path(argument) for argument in sys.argv[1:]]
PACK = Path(__file__).parents[3] / "integrations" / "comfyui"
LEVEL = 1 / 255

#: A folder for what ComfyUI writes.
STUBS = Path(tempfile.mkdtemp())

sys.argv = sys.argv[:1]
sys.path[:0] = [os.path.expanduser(os.environ["COMFYUI_DIR"])]
find_stand_ins(STUBS)

import comfy.cli_args

comfy.cli_args.args.cpu = True


def pack_module(name: str) -> Any:
    """A file of the pack, without its nodes."""
    if "hybridge_remote" not in sys.modules:
        package = types.ModuleType("hybridge_remote")
        package.__path__ = [str(PACK)]
        sys.modules["hybridge_remote"] = package
    return importlib.import_module(f"hybridge_remote.{name}")


def compare(told: dict[str, Any], name: str, found: Any, expected: Any, most: float) -> None:
    """Notes how far two tensors are apart, which may be as much as ``most``."""
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    told[name] = float((found - expected).abs().max())
    assert told[name] <= most, (name, told[name])
