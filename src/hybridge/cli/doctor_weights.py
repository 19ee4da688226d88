"""The doctor for folders: a VAE's or a whole pipeline's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HybridgeError
from ..protocol.tensor_files import LFS_START
from .doctor_report import Report

if TYPE_CHECKING:
    from ..models import ModelSpec

#: Files of a folder that are looked into.
_MOST_FILES = 2000

_NAME = "this"


def look_at_folder(report: Report, folder: Path) -> None:
    """Look at the folder of a VAE, of a pipeline, or of a repository in the hub's cache; nothing is downloaded."""
    from ..engine.hub import snapshot
    from ..engine.text.repository import is_pipeline

    root = snapshot(folder)
    pointers = [path for path in _files(root) if _is_pointer(path)]
    for path in pointers[:3]:
        report.add("git-lfs-pointer", f"{path.relative_to(root)} is a pointer of Git LFS instead of the file")
    if pointers:
        return
    if is_pipeline(str(folder)):
        report.facts["folder"] = "a whole pipeline"
        _look_at_text(report, root)
        _look_at_vae(report, str(root), "vae")
    else:
        report.facts["folder"] = "a VAE"
        _look_at_vae(report, str(root), None)


def look_at_single_file(report: Report, path: Path, model: str | None) -> None:
    """Look at a VAE in one file, with the scaling of ``model``, or of the model that the file is for."""
    report.facts["file"] = "weights of a VAE"
    _look_at_vae(report, str(path), model)


def _files(root: Path) -> list[Path]:
    found = []
    for path in root.rglob("*"):
        if path.is_file():
            found.append(path)
        if len(found) >= _MOST_FILES:
            break
    return found


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LFS_START)) == LFS_START


def _look_at_vae(report: Report, source: str, subfolder: str | None) -> None:
    from ..engine.loading import locate, resolve, shape_before_loading
    from ..engine.other_files import PICKLED
    from ..engine.weights import FP16, STEM, check_fit, read_headers

    folder = Path(source) if Path(source).is_file() else Path(source) / (subfolder or "")
    try:
        spec = resolve(f"{_NAME}={source}" + (f":{subfolder}" if subfolder else ""))
    except HybridgeError as error:
        report.add_error(error, "config-wrong")
        return
    report.facts |= {"class": spec.class_name, "latent channels": spec.latent_channels}
    if folder.is_file():
        report.facts["scaling"] = spec.title
    else:
        _look_at_scaling(report, spec, folder / "config.json")
    if not any(folder.glob("*.safetensors")) and any(path.suffix.lower() in PICKLED for path in folder.glob("*")):
        report.add("pickled-weights", "the weights are pickled, and hybridge unpickles none", "hybridge convert")
        return
    try:
        where = locate(spec)
        stored = read_headers(spec.name, where)
        check_fit(spec.name, where, stored, shape_before_loading(spec))
    except HybridgeError as error:
        report.add_error(error, "weights-incomplete")
        return
    report.facts["weights"] = f"{stored.numbers} numbers in {', '.join(path.name for path in stored.files)}"
    report.facts["on a GPU"] = f"{spec.half or 'float32'}, because {spec.half_reason}"
    if [path.name for path in stored.files] == [FP16]:
        report.add("only-a-variant", f"only {FP16} is there, and no {STEM}.safetensors")
    if spec.half is None:
        report.add("float16-overflow-risk", f"{spec.half_reason}: in float16 the pictures may be black")


def _look_at_scaling(report: Report, spec: ModelSpec, path: Path) -> None:
    from ..models.doctor.scaling import families_with

    own = spec.normalisation
    if own.mean or own.buffers:
        report.facts["scaling"] = "a mean and a deviation for each channel"
        return
    report.facts["scaling"] = f"{own.scaling_factor:g}, shift {own.shift_factor:g}"
    if spec.kind == "tiny":
        return
    config: Any = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    if config.get("scaling_factor") is None:
        report.add(
            "scaling-factor-missing",
            f"config.json has no scaling_factor, so {spec.class_name}'s default is taken, {own.scaling_factor:g}",
        )
        return
    families = families_with(own.scaling_factor, own.shift_factor, spec.class_name)
    if families:
        report.facts["scaled as"] = families
    else:
        report.add(
            "scaling-of-no-family",
            f"factor {own.scaling_factor:g} and shift {own.shift_factor:g} are those of no {spec.class_name} here",
        )


def _look_at_text(report: Report, root: Path) -> None:
    from ..engine.text.repository import open_index
    from ..engine.weights import files_of_index
    from ..models import text_side_for

    try:
        index = open_index(str(root), _NAME)
    except HybridgeError as error:
        report.add_error(error, "config-wrong")
        return
    class_name = str(index.get("_class_name"))
    report.facts["pipeline"] = class_name
    side = text_side_for(class_name)
    if side is None:
        report.add("text-not-served", f"the text encoders of {class_name} are not known here")
        return
    for encoder in side.encoders:
        folder = root / encoder.name
        if index.get(encoder.name) in (None, [None, None]):
            continue
        indexes = [*folder.glob("*.safetensors.index.json")]
        if not folder.is_dir() or not (indexes or any(folder.glob("*.safetensors"))):
            report.add("text-incomplete", f"{encoder.name} has no safetensors weights")
            continue
        try:
            for path in indexes[:1]:
                files_of_index(encoder.name, path)
        except HybridgeError as error:
            report.add_error(error, "text-incomplete")
        if not (root / encoder.tokenizer).is_dir():
            report.add("text-incomplete", f"there is no {encoder.tokenizer}")
    report.facts["text encoders"] = [encoder.name for encoder in side.encoders if (root / encoder.name).is_dir()]
