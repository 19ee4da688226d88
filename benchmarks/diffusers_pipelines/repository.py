"""Cases out of the tests of diffusers' repository: classes with ``get_dummy_components`` and ``get_dummy_inputs``.

A test file is read without the rest of the repository and without a network: what it imports from beside itself is
stood in for, and so are the small models that it would fetch from the hub.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import parts
import torch
import transformers
from case import Case, vae_name_of

#: What makes a class of tests one of a pipeline.
_NEEDED = {"pipeline_class", "get_dummy_components", "get_dummy_inputs"}

#: Repositories of small models that diffusers' tests fetch.
_FETCHED = "hf-internal-testing/"


def cases(folder: Path, failed: list[dict[str, Any]]) -> Iterator[Case]:
    """Cases of all test files below a folder; files that cannot be read are noted in ``failed``."""
    _stand_in_for_the_hub()
    for path in sorted(folder.rglob("test_*.py")):
        family = path.parent.name.replace("_", " ")
        try:
            module = _read(path, folder)
        except Exception as error:
            said = f"{type(error).__name__}: {str(error)[:200]}"
            failed.append({"family": family, "name": path.name, "local": said})
            continue
        seen = set()
        for name, found in vars(module).items():
            if not (inspect.isclass(found) and set(dir(found)) >= _NEEDED):
                continue
            # Newer files have a class for each group of tests, all of one pipeline.
            what = (found.pipeline_class, found.get_dummy_components, found.get_dummy_inputs)
            if what not in seen:
                seen.add(what)
                yield _case(family, f"{found.pipeline_class.__name__} ({name})", found())


def _case(family: str, name: str, test: Any) -> Case:
    def components() -> dict[str, Any]:
        torch.manual_seed(0)
        made: dict[str, Any] = test.get_dummy_components()
        return {key: part.eval() if isinstance(part, torch.nn.Module) else part for key, part in made.items()}

    def inputs(_: Any) -> dict[str, Any]:
        takes_device = "device" in inspect.signature(test.get_dummy_inputs).parameters
        asked: dict[str, Any] = test.get_dummy_inputs("cpu") if takes_device else test.get_dummy_inputs()
        return asked

    try:
        vae_name = vae_name_of(components())
    except Exception:
        vae_name = "vae"
    return Case(family, name, components, test.pipeline_class, inputs, vae_name)


# --------------------------------------------------------------------------------------- beside the file


class _Base:
    """In the place of every mixin, and of ``unittest.TestCase``'s own ``__init__``."""

    def get_generator(self, seed: int = 0) -> torch.Generator:
        """As the testers of newer files have it."""
        return torch.Generator("cpu").manual_seed(seed)


def _floats(shape: Any, scale: float = 1.0, rng: Any = None, **_: Any) -> torch.Tensor:
    """A tensor of numbers in [0, scale) from Python's generator."""
    count = int(torch.Size(shape).numel())
    values = [rng.random() * scale for _ in range(count)] if rng else torch.rand(count).tolist()
    return torch.tensor(values, dtype=torch.float).view(*shape)


def _stand_in(name: str) -> Any:
    """A mixin, a constant or a decorator, by how it is written."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name == "torch_device":
        return "cpu"
    if name in ("floats_tensor",):
        return _floats
    if name.isupper():
        return frozenset()
    if name[0].isupper():
        return type(name, (_Base,), {})
    # A decorator, or what makes one.
    return lambda *given, **_: given[0] if given and callable(given[0]) else (lambda function: function)


def _read(path: Path, folder: Path) -> ModuleType:
    package = ".".join(["diffusers_tests", *path.parent.relative_to(folder).parts])
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    with _Siblings(path):
        spec.loader.exec_module(module)
    return module


class _Siblings:
    """Lets a file's relative imports find stand-ins, for as long as it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        import builtins

        self._import = builtins.__import__

        def find(name: str, scope: Any = None, local: Any = None, wanted: Any = (), level: int = 0) -> Any:
            is_beside = level > 0 and str((scope or {}).get("__name__", "")).startswith("diffusers_tests")
            if not is_beside:
                return self._import(name, scope, local, wanted, level)
            module = ModuleType(name)
            for one in wanted or ():
                setattr(module, one, _stand_in(one))
            return module

        builtins.__import__ = find

    def __exit__(self, *_: object) -> None:
        import builtins

        builtins.__import__ = self._import


# ------------------------------------------------------------------------------------------------ the hub


def _stand_in_for_the_hub() -> None:
    """``from_pretrained`` of diffusers' small test models gives ones that are made here."""
    made = {
        "CLIPTokenizer": parts.clip_tokenizer,
        "T5Tokenizer": parts.t5_tokenizer,
        "T5TokenizerFast": parts.t5_tokenizer,
        "T5EncoderModel": parts.t5,
        "UMT5EncoderModel": parts.t5,
        "CLIPTextModel": parts.clip,
    }
    for name, make in made.items():
        _patch(getattr(transformers, name, None), lambda repository, make=make: make())
    _patch(transformers.AutoTokenizer, _tokenizer)
    _patch(transformers.AutoConfig, lambda repository: parts.t5().config)


def _tokenizer(repository: str) -> Any:
    return parts.clip_tokenizer() if "clip" in repository.lower() else parts.t5_tokenizer()


def _patch(kind: Any, make: Any) -> None:
    if kind is None:
        return
    fetch = kind.from_pretrained

    def from_pretrained(repository: Any, *given: Any, **named: Any) -> Any:
        if str(repository).startswith(_FETCHED):
            return make(str(repository))
        return fetch(repository, *given, **named)

    kind.from_pretrained = from_pretrained
