"""Starts the server of a real ComfyUI from ``COMFYUI_DIR``, on the processor: ``real_server.py FOLDER PORT``.

FOLDER has ComfyUI's ``models``, ``custom_nodes``, ``input`` and ``output``, as ``--base-directory`` means it.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from real_stand_ins import find_stand_ins

BASE, PORT = Path(sys.argv[1]), sys.argv[2]
COMFYUI = Path(os.environ["COMFYUI_DIR"]).expanduser()

if __name__ == "__main__":
    find_stand_ins(BASE / "stand_ins")
    (BASE / "page").mkdir()
    sys.path[0] = str(COMFYUI)
    sys.argv = [str(COMFYUI / "main.py"), "--cpu", "--force-fp32", "--listen", "127.0.0.1", "--port", PORT]
    sys.argv += ["--base-directory", str(BASE), "--front-end-root", str(BASE / "page")]
    sys.argv += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
    runpy.run_path(sys.argv[0], run_name="__main__")
