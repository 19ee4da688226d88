"""Loads the text side of a pipeline: its tokenizers and text encoders, and nothing else of it."""

from __future__ import annotations

import importlib.util
import inspect
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import HybridgeError, ModelUnavailable, OutOfMemory
from ...models.config_check import shown
from ...models.text_side import Encoder
from ..machine.mapped_files import without_pages_of
from ..memory.device_memory import is_short_of_memory
from ..options import Choice
from ..weights import files_of_index
from .dtypes import STORED_DTYPES, choose_text_dtype, stored_numbers
from .quantisation import check_runs, expected_bytes, is_worth_it, loading_arguments
from .repository import Repository, read_object
from .stand_ins import StandIn
from .tokenizers import Read, check_vocabulary, load_tokenizer, watched
from .trimmed import fewer_layers, without

_STEM = "model"


@dataclass(frozen=True, slots=True)
class TextParts:
    """A text side in memory.

    Attributes:
        pipeline: The pipeline's own class, with nothing but tokenizers and encoders.
        encoders: By the name of the component.
        dtype: In which precision they are, and why in this one.
        kept_layers: Of encoders that were cut, the number of layers.
        reads: What each tokenizer was told to cut, since it was last asked.
        quantised: How the weights of an encoder were quantised; those that are as in their files are not there.
    """

    pipeline: Any
    encoders: Mapping[str, Any]
    dtype: Choice[torch.dtype]
    kept_layers: Mapping[str, int] = field(default_factory=dict)
    reads: dict[str, list[Read]] = field(default_factory=dict)
    quantised: Mapping[str, str] = field(default_factory=dict)


def load_parts(
    repository: Repository, asked_dtype: str, device: torch.device, quantisation: str | None = None
) -> TextParts:
    """The text side, in eval mode and frozen, on its device.

    Args:
        repository: Its files.
        asked_dtype: ``auto`` or a floating dtype's name.
        device: Where it computes.
        quantisation: How the large encoders are quantised, if at all.

    Raises:
        ModelUnavailable: when it cannot be had, or is not what it should be.
        OutOfMemory: when there is no room for it.
        EngineFailure: for a dtype that does not exist, and for a quantisation that does not run here.
    """
    pipeline_class = pipeline_class_of(repository)
    _check_libraries(repository)
    present = [encoder for encoder in repository.side.encoders if is_present(repository, encoder)]
    files = {encoder.name: weights_of(repository, encoder.name) for encoder in present}
    all_files = [path for paths in files.values() for path in paths]
    dtype = choose_text_dtype(asked_dtype, stored_numbers(repository.name, all_files), device)
    kinds = _kinds_of(repository, files, quantisation)
    if quantisation is not None:
        check_runs(quantisation, dtype.value, device)
    components: dict[str, Any] = dict.fromkeys(repository.side.components)
    kept_layers: dict[str, int] = {}
    reads: dict[str, list[Read]] = {}
    defaults = inspect.signature(pipeline_class.__call__).parameters
    for encoder in present:
        read = defaults[encoder.layers[1]].default if encoder.layers else ()
        kind = kinds.get(encoder.name)
        how: dict[str, Any] = {}
        if kind is not None:
            how = loading_arguments(quantisation if kind == quantisation else None, dtype.value, device)
        model, layers = _load_encoder(repository, encoder, files[encoder.name], dtype.value, read, how)
        components[encoder.name] = model.to(device) if kind is None else model
        if layers is not None:
            kept_layers[encoder.name] = layers
        if components[encoder.tokenizer] is None:
            reads[encoder.tokenizer] = []
            folder = repository.folder / encoder.tokenizer
            tokenizer = load_tokenizer(
                repository.name, encoder.tokenizer, folder, tokenizer_class(repository, encoder.tokenizer)
            )
            check_vocabulary(repository.name, encoder.tokenizer, folder, tokenizer, model)
            components[encoder.tokenizer] = watched(tokenizer, reads[encoder.tokenizer])
    for name in repository.side.others:
        kind = class_of(repository, name)
        components[name] = load_tokenizer(repository.name, name, repository.folder / name, kind)
    pipeline = _assemble(repository, pipeline_class, components, dtype.value)
    encoders = {encoder.name: components[encoder.name] for encoder in present}
    return TextParts(pipeline, encoders, dtype, kept_layers, reads, kinds)


def weights_bytes(
    repository: Repository, asked_dtype: str, device: torch.device, quantisation: str | None = None
) -> int:
    """What the encoders take at most, from the headers of their files; parts that are not loaded are counted in.

    Raises:
        ModelUnavailable: when the files cannot be read.
    """
    present = [encoder for encoder in repository.side.encoders if is_present(repository, encoder)]
    files = {encoder.name: weights_of(repository, encoder.name) for encoder in present}
    stored = {name: stored_numbers(repository.name, paths) for name, paths in files.items()}
    dtype = choose_text_dtype(asked_dtype, sum(stored.values(), Counter[str]()), device).value
    kinds = _kinds_of(repository, files, quantisation)
    total = 0
    for name, numbers in stored.items():
        if name not in kinds:
            total += numbers.total() * dtype.itemsize
        elif kinds[name] == quantisation:
            kind = class_of(repository, name)
            config = kind.config_class.from_pretrained(repository.folder / name, local_files_only=True)
            with torch.device("meta"):
                total += expected_bytes(kind(config), quantisation, dtype)
        else:
            # Libraries may arrange the weights of their files anew, with a little more beside them.
            total += sum(path.stat().st_size for path in files[name]) * 9 // 8
    return total


def _kinds_of(
    repository: Repository, files: Mapping[str, Sequence[Path]], quantisation: str | None
) -> dict[str, str]:
    """How each encoder is quantised: as its files say, or as was asked for.

    Raises:
        ModelUnavailable: when files that are quantised should be quantised in another way.
    """
    kinds = {}
    for name in files:
        path = repository.folder / name / "config.json"
        saved = read_object(repository.name, path).get("quantization_config") if path.is_file() else None
        if isinstance(saved, dict):
            bits = " in 4 bits" if saved.get("load_in_4bit") else ""
            kinds[name] = f"{shown(saved.get('quant_method'))}{bits}, as saved"
    if quantisation is None:
        return kinds
    if kinds:
        name, kind = next(iter(kinds.items()))
        raise ModelUnavailable(
            f"the {name} of {repository.name} is quantised already",
            saw=kind,
            hint="serve it without --text-quantisation",
            where=repository.folder / name,
        )
    numbers = {name: stored_numbers(repository.name, paths).total() for name, paths in files.items()}
    return {name: quantisation for name, own in numbers.items() if is_worth_it(own, sum(numbers.values()))}


def pipeline_class_of(repository: Repository) -> Any:
    """The pipeline's class, of the installed diffusers.

    Raises:
        ModelUnavailable: when it has none of that name.
    """
    import diffusers

    kind = getattr(diffusers, repository.class_name, None)
    if kind is None:
        raise ModelUnavailable(
            f"the installed diffusers {diffusers.__version__} has no {repository.class_name}",
            hint="pip install --upgrade diffusers",
        )
    return kind


def _check_libraries(repository: Repository) -> None:
    missing = [name for name in repository.side.libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelUnavailable(
            f"{repository.side.name} needs {' and '.join(missing)}, without which other embeddings come out",
            hint="pip install 'hybridge[text]'",
        )


def class_of(repository: Repository, component: str) -> Any:
    """The class of a component, of the installed transformers.

    Raises:
        ModelUnavailable: when it has none of that name, or the pipeline no such component.
    """
    import transformers

    name = repository.class_of(component)
    kind = getattr(transformers, name, None) if name else None
    if kind is None:
        raise ModelUnavailable(
            f"{repository.name} has no {component}" if name is None else f"transformers has no {name}",
            saw=f"transformers {transformers.__version__}" if name else "a pipeline that was saved without it",
            hint="pip install --upgrade transformers" if name else "the repository that it was taken from",
            where=repository.folder,
        )
    return kind


def tokenizer_class(repository: Repository, component: str) -> Any:
    """The class of a tokenizer; of a component that is saved as an image processor, that of its tokenizer."""
    if component in repository.side.plain_tokenizers:
        import transformers

        return transformers.AutoTokenizer
    return class_of(repository, component)


def is_present(repository: Repository, encoder: Encoder) -> bool:
    """Whether the pipeline was saved with an encoder.

    Raises:
        ModelUnavailable: when it was not, although it needs it.
    """
    if repository.class_of(encoder.name) is not None:
        return True
    if encoder.optional:
        return False
    raise ModelUnavailable(
        f"{repository.name} has no text encoder",
        saw=f"{encoder.name} is missing in its model_index.json",
        expected=f"a {repository.class_name} that was saved with it",
        hint="the repository that it was taken from",
        where=repository.folder,
    )


def weights_of(repository: Repository, component: str) -> tuple[Path, ...]:
    """The safetensors files of an encoder, its fp16 variant where there is nothing else."""
    folder = repository.folder / component
    for variant in ("", ".fp16"):
        index = folder / f"{_STEM}.safetensors.index{variant}.json"
        if index.is_file():
            return tuple(folder / file for file in files_of_index(repository.name, index))
        whole = folder / f"{_STEM}{variant}.safetensors"
        if whole.is_file():
            return (whole,)
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".ckpt"))
    packed = sorted(path.name for path in folder.glob("*.gguf"))
    raise ModelUnavailable(
        f"no safetensors weights for the {component} of {repository.name}",
        saw=", ".join((pickled + packed)[:3]) or "no weights",
        expected=f"{_STEM}.safetensors; what is pickled is not read, and transformers would unpack a GGUF file",
        hint=(
            "load it with transformers, which you may trust with it, and save_pretrained()"
            if pickled
            else "the weights in 16 bits, and --text-quantisation"
            if packed
            else None
        ),
        where=folder,
    )


def _load_encoder(
    repository: Repository,
    encoder: Encoder,
    files: Sequence[Path],
    dtype: torch.dtype,
    read: Sequence[int],
    how: Mapping[str, Any],
) -> tuple[Any, int | None]:
    """The model, and the number of layers that it was cut to."""
    kind = class_of(repository, encoder.name)
    folder = repository.folder / encoder.name
    variant = "fp16" if ".fp16." in files[0].name else None
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        layers = fewer_layers(config, encoder, read)
        paths = encoder.without
        if paths or layers is not None:
            kind = without(kind, paths)
        # Never cast afterwards: what transformers keeps in float32 would lose its bits.
        # What is not converted stays where it is mapped.
        stored = stored_numbers(repository.name, files)
        is_copied = bool(how) or any(STORED_DTYPES.get(name) != dtype for name in stored)
        with without_pages_of(files if is_copied else ()):
            model, about = kind.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **how,
            )
    except Exception as error:  # transformers and safetensors raise many kinds on damaged files
        failure = _named(repository, encoder, error)
    else:
        _check_whole(repository, encoder, model, about)
        _name_as_before(model)
        return model.eval().requires_grad_(False), layers
    raise failure  # out here, because the traceback of the first would hold what was loaded so far


def _name_as_before(model: Any) -> None:
    """CLIP's layers stood under ``text_model`` once, where Stable Diffusion's ``clip_skip`` needs one."""
    if hasattr(model, "final_layer_norm") and not hasattr(model, "text_model"):
        # No module of its own, and no cycle, which would keep the weights for longer than they are used.
        model.__dict__["text_model"] = weakref.proxy(model)


def _named(repository: Repository, encoder: Encoder, error: Exception) -> HybridgeError:
    what = f"the {encoder.name} of {repository.name}"
    if is_short_of_memory(error):
        return OutOfMemory(
            f"there is no memory for {what}",
            hint="fewer models, --memory so that idle ones leave, or --dtype bfloat16",
        )
    said = str(error).strip().splitlines()
    return ModelUnavailable(
        f"{what} cannot be read",
        saw=f"{type(error).__name__}: {said[0][:200] if said else ''}",
        where=repository.folder / encoder.name,
    )


def _check_whole(repository: Repository, encoder: Encoder, model: Any, about: Mapping[str, Any]) -> None:
    missing = sorted(about.get("missing_keys", ()))
    if missing or about.get("mismatched_keys"):
        raise ModelUnavailable(
            f"the weights of the {encoder.name} of {repository.name} are incomplete",
            saw=f"no {missing[0]}, and {len(missing) - 1} more" if missing else "tensors of other shapes",
            expected="all that its config.json describes",
            hint="download them again",
            where=repository.folder / encoder.name,
        )
    # T5's have one table of embeddings under two names; a release of transformers filled one of them alone.
    shared, inner = getattr(model, "shared", None), getattr(getattr(model, "encoder", None), "embed_tokens", None)
    if shared is not None and inner is not None and not torch.equal(shared.weight, inner.weight):
        raise ModelUnavailable(
            f"the {encoder.name} of {repository.name} has two tables of embeddings that differ",
            hint="pip install --upgrade transformers",
            where=repository.folder / encoder.name,
        )


def _assemble(
    repository: Repository, pipeline_class: Any, components: Mapping[str, Any], dtype: torch.dtype
) -> Any:
    """The pipeline around its text side."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(pipeline_class.__init__).parameters.items():
        entry = repository.index.get(name)
        if name == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if name in components:
            given[name] = components[name]
        elif name in repository.side.stand_ins:
            given[name] = _stand_in(repository, name, dtype)
        elif name == "requires_safety_checker":
            given[name] = False
        elif name in repository.index and not isinstance(entry, (list, dict)):
            given[name] = entry
        elif parameter.default is parameter.empty or isinstance(entry, list):
            given[name] = None
    try:
        return pipeline_class(**given)
    except Exception as error:  # constructors read facts of components, which may be missing in a stand-in
        said = str(error).strip().splitlines()
        raise ModelUnavailable(
            f"no {repository.class_name} can be made of {repository.name}",
            saw=f"{type(error).__name__}: {said[0][:200] if said else ''}",
            where=repository.folder,
        ) from None


def _stand_in(repository: Repository, name: str, dtype: torch.dtype) -> StandIn:
    path = repository.folder / name / "config.json"
    return StandIn(read_object(repository.name, path) if path.is_file() else {}, dtype)
