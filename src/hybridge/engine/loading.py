"""Load weights from the Hugging Face hub, a folder or a single file; safetensors only.

The hub's own settings apply: ``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_HUB_DISABLE_PROGRESS_BARS``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import HybridgeError, ModelUnavailable, OutOfMemory, RequestError
from ..models import CATALOGUE, ModelSpec, look_up, parent_of_tiny, spec_from_config
from ..models.single_file import spec_from_file
from ..models.tiny_files import stem_of
from .config_json import read_config
from .hub import download, snapshot
from .latents import STATISTICS
from .machine.cgroups import available_bytes
from .memory.device_memory import free_bytes, is_short_of_memory
from .other_files import PICKLED, how_to_convert, repository_of, without_config
from .program.lowering import class_of, constants_of, skeleton
from .weights import (
    FP16,
    STEM,
    check_fit,
    fill,
    fill_constants,
    find_weights,
    read_headers,
    read_some,
)

#: Model names are part of URLs.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def resolve(argument: str) -> ModelSpec:
    """Return the model of a catalogue name, or of ``NAME=PATH_OR_REPO[:subfolder]`` for other VAEs.

    The second form, for any AutoencoderKL or AutoencoderTiny, reads the model's ``config.json``, from the hub if
    needed.  A single file of weights is ``NAME=FILE[:MODEL]``; MODEL is the catalogue row with the same scaling.

    Raises:
        UnknownModel: for a name that the catalogue does not have.
        ModelUnavailable: when the config cannot be read or downloaded, or is of another class.
    """
    name, separator, rest = argument.partition("=")
    if not separator:
        return look_up(name)
    if not _NAME.fullmatch(name) or not rest:
        raise RequestError(
            "not a model", saw=repr(argument), expected="NAME=PATH_OR_REPO[:subfolder], NAME in lower case"
        )
    source, subfolder = _split_subfolder(rest)
    if Path(source).is_file():
        return _resolve_file(name, source, subfolder)
    if (half := _half_of_taesd(name, source, subfolder)) is not None:
        return _resolve_file(name, str(half), subfolder if subfolder in CATALOGUE else None)
    config = read_config(name, _locate(name, source, subfolder, ["config.json"]))
    parent = parent_of_tiny(source)
    if parent is None and name in CATALOGUE and CATALOGUE[name].parent:
        parent = CATALOGUE[CATALOGUE[name].parent or ""]
    return spec_from_config(name, source, subfolder, config, parent=parent)


def _resolve_file(name: str, source: str, asked: str | None) -> ModelSpec:
    if asked is not None:
        look_up(asked)
    beside = Path(source).with_name("config.json")
    found = read_headers(name, Path(source)).single
    assert found is not None  # noqa: S101 - it is a file
    if asked is None and found.layout == "diffusers" and not found.prefix and beside.is_file():
        config = read_config(name, beside.parent)
        return replace(spec_from_config(name, source, None, config), architecture=config)
    return spec_from_file(name, source, asked, found)


def _half_of_taesd(name: str, source: str, asked: str | None) -> Path | None:
    """Return a decoder's file in a folder of TAESDs, such as ComfyUI's ``vae_approx``; None for other folders.

    Raises:
        ModelUnavailable: when there are several and none is called ``asked`` or ``name``, or only pickled weights.
    """
    folder = snapshot(Path(source))
    if not folder.is_dir() or (folder / "config.json").is_file() or (asked and (folder / asked).is_dir()):
        return None
    decoders = {stem_of(path): path for path in sorted(folder.glob("*_decoder.safetensors"))}
    pickled = {stem_of(path): path for path in sorted(folder.glob("*_decoder.*")) if path.suffix.lower() in PICKLED}
    wanted = next((stem for stem in (asked, name) if stem in decoders or stem in pickled), None)
    if wanted is None and len(decoders) == 1:
        (wanted,) = decoders
    if wanted in decoders:
        return decoders[wanted]
    known = {**pickled, **decoders}
    if not known:
        return None
    if wanted is None and len(known) > 1:
        stems = sorted(str(stem) for stem in known)
        raise ModelUnavailable(
            f"several decoders for {name}",
            saw=", ".join(stems[:8]),
            expected="one of them",
            hint=f"{name}={source}:{stems[0]}",
            where=folder,
        )
    path = known[wanted] if wanted is not None else next(iter(known.values()))
    raise ModelUnavailable(
        f"no safetensors weights for {name}",
        saw=f"{path.name}, which is pickled",
        hint=how_to_convert(path, path.with_suffix(".safetensors")),
        where=folder,
    )


def _split_subfolder(source: str) -> tuple[str, str | None]:
    whole = expanded(source)
    if whole.exists():
        return str(whole), None
    head, separator, tail = source.rpartition(":")
    # A colon before a slash is part of a path (a drive letter), not of a subfolder.
    if not separator or tail.startswith(("/", "\\")):
        return source, None
    return str(expanded(head)) if expanded(head).exists() else head, tail


def expanded(path: str) -> Path:
    """Replace ``~`` by the home folder, if there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_path(source: str) -> bool:
    """Return whether this names a path on disk, existing or not, so that the hub is not asked for it."""
    ends = (".safetensors", *PICKLED)
    is_written_so = source.startswith((".", "~")) or "\\" in source or source.lower().endswith(ends)
    return is_written_so or Path(source).is_absolute() or Path(source).exists()


def locate(spec: ModelSpec) -> Path:
    """Return the folder or the single file of this model, downloaded with a progress bar if needed.

    Raises:
        ModelUnavailable: when the files cannot be downloaded; the error says what to try.
    """
    patterns = ["config.json", f"{STEM}.safetensors", f"{STEM}-*.safetensors", f"{STEM}*.index.json"]
    if Path(spec.source).is_file():
        return Path(spec.source)
    folder = _locate(spec.name, spec.source, spec.subfolder, patterns)
    if not any(folder.glob(f"{STEM}*.safetensors*")) and not is_path(spec.source):
        # A repository may have only the fp16 variant; it is not downloaded in addition to the plain file.
        folder = _locate(spec.name, spec.source, spec.subfolder, ["config.json", FP16])
    find_weights(spec.name, folder)
    return folder


def weights_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Return the bytes of a module's own weights in this dtype, from their files' headers, downloaded if needed.

    Raises:
        ModelUnavailable: when the weights cannot be read or downloaded.
    """
    return read_headers(spec.name, locate(spec)).numbers * dtype.itemsize


def shape_before_loading(spec: ModelSpec) -> Any:
    """Return the module that will be loaded, built from its files' description, without weights.

    Raises:
        ModelUnavailable: when the weights cannot be read or downloaded.
    """
    folder = locate(spec)
    return _skeleton(spec, _config_of(spec, folder), folder)


def config_before_loading(spec: ModelSpec) -> dict[str, Any]:
    """Return the module's configuration, as far as it is known without its weights.

    This is the catalogue's data, or the model's ``config.json``, plus the defaults of its class.

    Raises:
        ModelUnavailable: when the config cannot be read or downloaded.
    """
    config: Mapping[str, Any] | None = spec.architecture
    folder = None
    if config is None:
        folder = _locate(spec.name, spec.source, spec.subfolder, ["config.json"])
        config = read_config(spec.name, folder)
    made: Any = _skeleton(spec, config, folder).config
    return {name: value for name, value in made.items() if not name.startswith("_")}


def config_for_planning(spec: ModelSpec) -> dict[str, Any]:
    """As :func:`config_before_loading`, of a model that is not on this machine with what the catalogue knows of it.

    That is enough for the shapes of weights, and may have other statistics of latents; no network is needed.
    """
    if spec.architecture is None and spec.shape is not None and not is_cached(spec):
        spec = replace(spec, architecture=spec.shape)
    return config_before_loading(spec)


def statistics_before_loading(spec: ModelSpec, dtype: torch.dtype) -> dict[str, tuple[float, ...]]:
    """Return what :func:`.latents.statistics_of` will, of weights that are on this machine; else nothing.

    Damaged weights are reported when they are loaded.
    """
    if not is_cached(spec):
        return {}
    try:
        read = read_some(read_headers(spec.name, locate(spec)), STATISTICS)
    except ModelUnavailable:
        return {}
    return {name: tuple(numbers.to(dtype).float().flatten().tolist()) for name, numbers in read.items()}


def is_cached(spec: ModelSpec) -> bool:
    """Return whether the weights are on this machine, so that loading needs no network."""
    if is_path(spec.source):
        return Path(spec.source).exists()
    from huggingface_hub import errors as hub
    from huggingface_hub import try_to_load_from_cache

    prefix = f"{spec.subfolder}/" if spec.subfolder else ""
    names = (f"{STEM}.safetensors", FP16)
    try:
        return any(isinstance(try_to_load_from_cache(spec.source, prefix + name), str) for name in names)
    except hub.HFValidationError:  # no repository can have such a name
        return False


def load(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the diffusers module: in eval mode, frozen, on its device.

    Raises:
        ModelUnavailable: when the weights cannot be read or downloaded, or do not match the catalogue.
    """
    folder = locate(spec)
    config = _config_of(spec, folder)
    found = spec_from_config(spec.name, spec.source, spec.subfolder, config)
    if (found.class_name, found.latent_channels) != (spec.class_name, spec.latent_channels):
        raise ModelUnavailable(
            f"these weights are not {spec.name}",
            saw=f"{found.class_name} with {found.latent_channels} latent channels",
            expected=f"{spec.class_name} with {spec.latent_channels}",
            where=folder,
        )
    stored = read_headers(spec.name, folder)
    module = _skeleton(spec, config, folder)
    check_fit(spec.name, folder, stored, module)
    try:
        module = fill(module, stored, dtype)
        fill_constants(module, lambda: constants_of(spec.class_name, config))
        return module.eval().requires_grad_(False).to(device)
    except Exception as error:  # diffusers and safetensors raise many types for damaged files
        if is_short_of_memory(error):
            refusal = _no_room(spec, stored.numbers * dtype.itemsize, device)
        else:
            said = str(error).splitlines()[0] if str(error) else ""
            refusal = ModelUnavailable(
                f"the weights of {spec.name} cannot be read", saw=f"{type(error).__name__}: {said}", where=folder
            )
    raise refusal  # outside of except: the first error's traceback would keep the tensors loaded so far


def _no_room(spec: ModelSpec, needed_bytes: int, device: torch.device) -> HybridgeError:
    free = available_bytes() if device.type == "cpu" else free_bytes(device)
    return OutOfMemory(
        f"there is no memory on {device} for the weights of {spec.name}",
        saw=None if free is None else f"{free} bytes free",
        expected=f"{needed_bytes} bytes",
        hint="fewer models, --memory so that idle ones leave, or half precision",
    )


def _skeleton(spec: ModelSpec, config: Mapping[str, Any], where: object) -> Any:
    if class_of(spec.class_name) is None:
        import diffusers

        raise ModelUnavailable(
            f"the installed diffusers cannot load {spec.name}",
            saw=f"diffusers {diffusers.__version__} without {spec.class_name}",
            hint="pip install --upgrade diffusers",
            where=where,
        )
    try:
        module = skeleton(spec.class_name, config)
        if not spec.has_encoder:
            module.encoder = torch.nn.Identity()  # it has no weights and is never called
        return module
    except Exception as error:  # diffusers raises many types, for example for unknown blocks or activations
        said = str(error).splitlines()[0] if str(error) else ""
        raise ModelUnavailable(
            f"no module can be made of the config.json of {spec.name}",
            saw=f"{type(error).__name__}: {said[:200]}",
            where=where,
        ) from None


def _config_of(spec: ModelSpec, where: Path) -> Mapping[str, Any]:
    """Return the ``config.json`` of a folder, or the config that :func:`resolve` read from a single file."""
    if where.is_file():
        return spec.architecture or {}
    return read_config(spec.name, where)


def _locate(name: str, source: str, subfolder: str | None, patterns: list[str]) -> Path:
    local = Path(source)
    if "://" in source and not local.exists():
        repository = repository_of(source)
        raise ModelUnavailable(
            f"a URL is no source for {name}",
            saw=source,
            expected="a folder, a safetensors file, or a repository of the hub",
            hint=f"{name}={repository}" if repository else "downloading it, and the path of the file",
        )
    if not local.is_dir() and is_path(source):
        raise ModelUnavailable(
            f"no folder for {name}",
            expected="a folder, a safetensors file, or a repository of the hub",
            where=source,
        )
    root = snapshot(local) if local.is_dir() else download(name, source, subfolder, patterns)
    folder = root / subfolder if subfolder else root
    if not (folder / "config.json").is_file():
        hint = without_config(name, source, folder)
        raise ModelUnavailable(f"no config.json for {name}", hint=hint, where=folder)
    return folder
