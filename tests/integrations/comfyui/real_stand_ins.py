"""Stand-ins for libraries that ComfyUI imports and that no test needs: torchvision brings another torch."""

from __future__ import annotations

import sys
from pathlib import Path

import transformers  # before it could find the stand-ins

_FILES = {
    "torchvision/__init__.py": "",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "",
    "torchaudio/__init__.py": "",
}


def find_stand_ins(folder: Path) -> None:
    """Writes the stand-ins into a folder, in which Python looks for what it finds nowhere else."""
    transformers.CLIPTokenizer  # noqa: B018 - its module is loaded now
    for name, text in _FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    sys.path.append(str(folder))
