"""A real ComfyUI for the scripts beside this file: imported from ``COMFYUI_DIR``, on the processor.

Importing this prepares ComfyUI, so it comes before any import of ComfyUI's.
"""

# ruff: noqa: E402 - ComfyUI reads the command line and finds torchvision when it is imported

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers  # before it could find the stand-ins below
from transformers import CLIPTextModel, CLIPTokenizer

__all__ = ["FOLDERS", "LEVEL", "PACK", "STUBS", "CLIPTextModel", "CLIPTokenizer", "compare"]

#: What the command line names: folders of models.
FOLDERS = [Path(argument) for argument in sys.argv[1:]]
PACK = Path(__file__).parents[3] / "integrations" / "comfyui"
LEVEL = 1 / 255

#: Stand-ins for libraries that ComfyUI imports and that nothing here uses.
STUBS = Path(tempfile.mkdtemp())
_FILES = {
    "torchvision/__init__.py": "",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "",
    "torchaudio/__init__.py": "",
}

transformers.CLIPTokenizer  # noqa: B018 - its module is loaded now
sys.argv = sys.argv[:1]
sys.path[:0] = [os.path.expanduser(os.environ["COMFYUI_DIR"])]
sys.path.append(str(STUBS))
for _name, _text in _FILES.items():
    (STUBS / _name).parent.mkdir(parents=True, exist_ok=True)
    (STUBS / _name).write_text(_text)

import comfy.cli_args

comfy.cli_args.args.cpu = True


def compare(told: dict[str, Any], name: str, found: Any, expected: Any, most: float) -> None:
    """Notes how far two tensors are apart, which may be as much as ``most``."""
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    told[name] = float((found - expected).abs().max())
    assert told[name] <= most, (name, told[name])
