"""``python -m hybridge``: the command, for a Python whose scripts are not in the PATH, such as ComfyUI's own."""

from .cli import main

main()
