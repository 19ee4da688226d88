"""Weights: from the hub or a folder, safetensors only.

The hub's own settings hold: ``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_HUB_DISABLE_PROGRESS_BARS``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelUnavailable, RequestError
from ..models import CATALOGUE, ModelSpec, look_up, parent_of_tiny, spec_from_config
from .lowering import skeleton

_log = logging.getLogger(__name__)

#: Names stand in URLs.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

_WEIGHTS = "diffusion_pytorch_model"


def resolve(argument: str) -> ModelSpec:
    """A name of the catalogue, or ``NAME=PATH_OR_REPO[:subfolder]`` for any AutoencoderKL or AutoencoderTiny.

    The second form reads the model's ``config.json``, from the hub if it has to.

    Raises:
        UnknownModel: for a name that the catalogue does not have.
        ModelUnavailable: when the config cannot be had, or is of another class.
    """
    name, separator, rest = argument.partition("=")
    if not separator:
        return look_up(name)
    if not _NAME.fullmatch(name) or not rest:
        raise RequestError(
            "not a model", saw=repr(argument), expected="NAME=PATH_OR_REPO[:subfolder], NAME in lower case"
        )
    source, subfolder = _split_subfolder(rest)
    config = _read_config(name, _locate(name, source, subfolder, ["config.json"]))
    parent = parent_of_tiny(source)
    if parent is None and name in CATALOGUE and CATALOGUE[name].parent:
        parent = CATALOGUE[CATALOGUE[name].parent or ""]
    return spec_from_config(name, source, subfolder, config, parent=parent)


def _split_subfolder(source: str) -> tuple[str, str | None]:
    if Path(source).expanduser().exists():
        return str(Path(source).expanduser()), None
    head, separator, tail = source.rpartition(":")
    # A colon before a slash is part of a path (a drive letter), not of a subfolder.
    if not separator or tail.startswith(("/", "\\")):
        return source, None
    return str(Path(head).expanduser()) if Path(head).expanduser().exists() else head, tail


def locate(spec: ModelSpec) -> Path:
    """The folder that holds this model's config and weights, downloaded with a progress bar if need be.

    Raises:
        ModelUnavailable: with what to do about it.
    """
    patterns = ["config.json", f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}-*.safetensors", f"{_WEIGHTS}*.index.json"]
    folder = _locate(spec.name, spec.source, spec.subfolder, patterns)
    if not any(folder.glob(f"{_WEIGHTS}*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.ckpt"))
        raise ModelUnavailable(
            f"no safetensors weights for {spec.name}",
            saw=f"{folder} with {'pickled weights only' if pickled else 'no weights'}",
            expected=f"{_WEIGHTS}.safetensors",
            hint="convert them once with save_pretrained(); hybridge never unpickles" if pickled else None,
        )
    return folder


def weights_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """What a module's own weights will take in this dtype, from the headers of their files, fetched if need be.

    Raises:
        ModelUnavailable: when they cannot be had.
    """
    numbers = 0
    for path in locate(spec).glob(f"{_WEIGHTS}*.safetensors"):
        with path.open("rb") as file:
            # A safetensors file begins with the length of its JSON header.
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        numbers += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return numbers * dtype.itemsize


def shape_before_loading(spec: ModelSpec) -> Any:
    """The module that will be loaded, as its files describe it, without its weights.

    Raises:
        ModelUnavailable: when they cannot be had.
    """
    return skeleton(spec.class_name, _read_config(spec.name, locate(spec)))


def config_before_loading(spec: ModelSpec) -> dict[str, Any]:
    """What the module will be made with, as far as that is known without its weights.

    The catalogue's own figures, or the model's ``config.json``, and the defaults of its class.

    Raises:
        ModelUnavailable: when the config cannot be had.
    """
    config: Mapping[str, Any] | None = spec.architecture
    if config is None:
        config = _read_config(spec.name, _locate(spec.name, spec.source, spec.subfolder, ["config.json"]))
    made: Any = skeleton(spec.class_name, config).config
    return {name: value for name, value in made.items() if not name.startswith("_")}


def is_cached(spec: ModelSpec) -> bool:
    """Whether the weights lie on this machine, so that loading needs no network."""
    if Path(spec.source).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    prefix = f"{spec.subfolder}/" if spec.subfolder else ""
    return isinstance(try_to_load_from_cache(spec.source, f"{prefix}{_WEIGHTS}.safetensors"), str)


def load(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """The diffusers module, in eval mode, frozen, on its device.

    Raises:
        ModelUnavailable: when the weights cannot be had, or are not what the catalogue says they are.
    """
    folder = locate(spec)
    config = _read_config(spec.name, folder)
    found = spec_from_config(spec.name, spec.source, spec.subfolder, config)
    if (found.kind, found.latent_channels) != (spec.kind, spec.latent_channels):
        raise ModelUnavailable(
            f"these weights are not {spec.name}",
            saw=f"{found.class_name} with {found.latent_channels} latent channels in {folder}",
            expected=f"{spec.class_name} with {spec.latent_channels}",
        )
    try:
        module = _with_weights(skeleton(spec.class_name, config), folder, dtype)
    except Exception as error:  # diffusers and safetensors raise many kinds on damaged files
        raise ModelUnavailable(
            f"the weights of {spec.name} cannot be read",
            saw=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} in {folder}",
            hint="delete that folder and download again, if the download was cut short",
        ) from error
    return module.eval().requires_grad_(False).to(device)


def _with_weights(module: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A module of the ``meta`` device with the weights of a folder in place of its own.

    ``from_pretrained`` of diffusers gives the same, but while it builds a module it sets torch's default dtype and
    replaces functions of ``torch.nn`` for the whole process, in which another thread may be computing.

    Raises:
        ValueError: when weights are missing.
    """
    from safetensors.torch import load_file

    weights = {name: numbers for path in _weight_files(folder) for name, numbers in load_file(path).items()}
    module._fix_state_dict_keys_on_load(weights)  # diffusers' own, for names of before its version 0.18
    weights = {name: part.to(dtype) if part.is_floating_point() else part for name, part in weights.items()}
    unlike = module.load_state_dict(weights, strict=False, assign=True)
    if unlike.missing_keys:
        raise ValueError(f"it has no {', '.join(unlike.missing_keys[:3])}")
    if unlike.unexpected_keys:
        _log.warning("%s has weights that nobody asks for: %s", folder, ", ".join(unlike.unexpected_keys[:3]))
    return module


def _weight_files(folder: Path) -> list[Path]:
    """One file, or those that an index names."""
    index = folder / f"{_WEIGHTS}.safetensors.index.json"
    if not index.is_file():
        return [folder / f"{_WEIGHTS}.safetensors"]
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [folder / Path(name).name for name in sorted(names)]  # beside the index, whatever it says


def _locate(name: str, source: str, subfolder: str | None, patterns: list[str]) -> Path:
    local = Path(source)
    if not local.is_dir() and (local.is_absolute() or source.startswith((".", "~"))):
        raise ModelUnavailable(f"no folder for {name}", saw=source, expected="a folder, or a repository of the hub")
    root = local if local.is_dir() else _download(name, source, subfolder, patterns)
    folder = root / subfolder if subfolder else root
    if not (folder / "config.json").is_file():
        has_vae = (folder / "vae" / "config.json").is_file() or (folder / "model_index.json").is_file()
        raise ModelUnavailable(
            f"no config.json for {name}",
            saw=str(folder),
            hint=f"{name}={source}:vae, for this is a whole pipeline" if has_vae else None,
        )
    return folder


def _download(name: str, repository: str, subfolder: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        return Path(snapshot_download(repository, allow_patterns=[prefix + pattern for pattern in patterns]))
    except hub.GatedRepoError:
        raise ModelUnavailable(
            f"{name} is gated",
            saw=repository,
            hint=f"accept its licence at huggingface.co/{repository}, then `hf auth login` or set HF_TOKEN",
        ) from None
    except hub.RepositoryNotFoundError:
        raise ModelUnavailable(
            f"the hub has no {repository}", saw=name, hint="check the name, or set HF_TOKEN if it is private"
        ) from None
    except hub.HFValidationError as error:
        raise ModelUnavailable(f"not a repository of the hub: {repository!r}", saw=str(error)) from None
    except (hub.LocalEntryNotFoundError, hub.HfHubHTTPError, OSError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        raise ModelUnavailable(
            f"{name} cannot be downloaded",
            saw="HF_HUB_OFFLINE is set, and the weights are not in the cache" if offline else type(error).__name__,
            hint=f"`hybridge models --download {name}` where there is a network, or {name}=/path/to/folder",
        ) from None


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelUnavailable(f"the config.json of {name} is not JSON", saw=f"{error} in {folder}") from None
    if not isinstance(config, dict):
        raise ModelUnavailable(f"the config.json of {name} holds no object", saw=str(folder))
    return config
