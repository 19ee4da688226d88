"""ComfyUI's folders; tests set ``base``."""

from __future__ import annotations

from pathlib import Path

base = Path()


def get_input_directory() -> str:
    return str(base / "input")


def get_output_directory() -> str:
    return str(base / "output")


def get_annotated_filepath(name: str, default_dir: str | None = None) -> str:
    if name.endswith(" [output]"):
        return str(base / "output" / name.removesuffix(" [output]"))
    return str(base / "input" / name)


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    subfolder, _, name = filename_prefix.rpartition("/")
    folder = Path(output_dir) / subfolder
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder), name, len(list(folder.glob(f"{name}_*"))) + 1, subfolder, filename_prefix
