"""Make a diffusers pipeline hybrid with one call: its VAE and its text encoders run on a server."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..errors import ClientError, Mismatch, RequestError
from .client import Client
from .model_matching import choose, denoiser_of, need_of
from .remote_vae import RemoteVAE
from .served_vaes import read_models
from .text_replacement import remote_text
from .transport import ANSWER_TIMEOUT_S

#: The parts of a pipeline that a server can run.
PARTS = ("vae", "text")


@dataclass(frozen=True, slots=True)
class Replacement:
    """A part of the pipeline, the server's model that replaced it, and the reason for the choice."""

    part: str
    model: str
    reason: str


#: Marks an attribute that the pipeline's class has but the pipeline itself did not have.
_ABSENT = object()


class _Changes:
    """Attributes that were set on pipelines, and their earlier values.

    Args:
        values: The pipelines, each with the new values of its attributes; they are set on creation.
        owned: Resources that are closed when the changes are undone.
    """

    def __init__(self, values: Sequence[tuple[Any, Mapping[str, Any]]], owned: contextlib.ExitStack) -> None:
        self._values = list(values)
        # Setting a part also changes the pipeline's config.
        self._before = [
            (pipe, {name: vars(pipe).get(name, _ABSENT) for name in new}, pipe._internal_dict)
            for pipe, new in values
        ]
        self._owned = owned
        for pipe, new in self._values:
            for name, value in new.items():
                setattr(pipe, name, value)

    def undo(self) -> None:
        if not self._values:
            return
        for pipe, new in self._values:
            for name, value in new.items():
                if getattr(pipe, name) is not value:
                    raise ClientError(
                        f"`{name}` of this {type(pipe).__name__} has been replaced again since",
                        hint="undoing the later connection first",
                    )
        for pipe, old, record in self._before:
            for name, value in old.items():
                if value is _ABSENT:
                    delattr(pipe, name)
                else:
                    setattr(pipe, name, value)
            pipe._internal_dict = record
        self._values.clear()
        self._owned.close()


@dataclass(frozen=True, slots=True, eq=False)
class Connection:
    """The changes that :func:`connect` made.  ``with`` undoes them at the end of the block.

    Attributes:
        server: The server's address, without secrets.
        replaced: The replaced parts, their replacements, and the reasons.
    """

    server: str
    replaced: tuple[Replacement, ...]
    _changes: _Changes = field(repr=False)

    def undo(self) -> None:
        """Restore the earlier state.  A second call does nothing.

        Raises:
            ClientError: when a part has been replaced again since, for example by a later connection.
        """
        self._changes.undo()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.undo()

    def __str__(self) -> str:
        return "; ".join(f"{r.part} is {r.model} of {self.server}: {r.reason}" for r in self.replaced)


def connect(
    pipe: Any,
    server: str | Client,
    *,
    parts: Literal["auto"] | str | Iterable[str] = "auto",
    model: str | None = None,
    text_model: str | None = None,
    api_key: str | None = None,
    timeout: float | None = ANSWER_TIMEOUT_S,
) -> Connection:
    """Let ``server`` run the heavy parts of a diffusers pipeline; the pipeline is used as before.

    ::

        without = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        pipe = StableDiffusionXLPipeline.from_pretrained("…", **without, torch_dtype=torch.float16).to("cuda")
        hybridge.connect(pipe, "http://gpu-box:8000")
        pipe("a lighthouse in a storm").images[0]

    Args:
        pipe: Any pipeline with a ``vae`` of class AutoencoderKL or AutoencoderTiny, or of a known class with
            ``vae=None``; for ``text``, one of a class in :mod:`hybridge.models.text_sides`.  It is changed in
            place.
        server: Its URL or the name of a profile, as for :class:`Client`; or a client, which the caller has to
            close.
        parts: The parts to replace: ``vae`` or ``text`` or both.  ``auto`` is both, as far as the server has them.
            Text encoders that are loaded are then replaced only by equal ones: with the same weights and the same
            tokens.  Others are kept, and a warning says why.
        model: The server's model for the VAE; if None, the one that fits the pipeline's config or class.
        text_model: The server's model for the text encoders; if None, the one that equals the pipeline's own, or
            the only one that serves such a pipeline.
        api_key: Sent as ``Authorization: Bearer``; not together with a client.
        timeout: Seconds to wait for an answer; not together with a client.

    Raises:
        ClientError: as for :class:`Client`; Mismatch when no model of the server fits.  The pipeline is then
            unchanged.
        RequestError: for unknown parts, and for arguments that a given client has itself.
    """
    wanted = _named_parts(parts)
    if isinstance(server, Client) and (api_key is not None or timeout != ANSWER_TIMEOUT_S):
        raise RequestError(
            "a client has its own key and timeout", saw="api_key or timeout as well", hint="Client(…) with them"
        )
    with contextlib.ExitStack() as owned:
        if isinstance(server, Client):
            client = server
        else:
            client = owned.enter_context(Client(server, api_key=api_key, timeout=timeout))
        documents = client.models()
        values: list[tuple[Any, dict[str, Any]]] = []
        replaced: list[Replacement] = []
        is_asked = parts != "auto" or text_model is not None
        text = remote_text(pipe, client, documents, text_model, is_asked=is_asked) if "text" in wanted else None
        # A server without any VAE is asked for text alone.
        is_text_alone = parts == "auto" and model is None and text is not None and not read_models(documents, "")
        if "vae" in wanted and not is_text_alone:
            vae, chosen, reason = _remote_vae(pipe, client, documents, model)
            values += [(part, {"vae": vae, **_learned(part, vae)}) for part in (pipe, *_inner(pipe))]
            replaced.append(Replacement("vae", chosen, reason))
        if text is not None:
            encoder, reason = text
            values.append((pipe, {"encode_prompt": encoder}))
            replaced.append(Replacement("text", encoder.model, reason))
        return Connection(client.server, tuple(replaced), _Changes(values, owned.pop_all()))


def _remote_vae(
    pipe: Any, client: Client, documents: Sequence[Any], model: str | None
) -> tuple[RemoteVAE, str, str]:
    """Return the module that replaces the pipeline's VAE, its name on the server, and the reason."""
    need = need_of(pipe, is_chosen=model is not None)
    chosen, reason = choose(need, read_models(documents, client.server), model, client.server)
    like = _module_like(pipe)
    vae = RemoteVAE(client, chosen, dtype=like.dtype, device=_usable(like.device))
    vae.is_posing = chosen.class_name in _classes_asked_for(type(pipe))
    _place_like_offloaded(vae, pipe)
    if chosen.dtype != (own := str(vae.dtype).removeprefix("torch.")):
        reason += f"; it computes in {chosen.dtype}, the pipeline's is {own}"
    return vae, chosen.name, reason


def _inner(pipe: Any) -> list[Any]:
    """Return the pipelines inside a pipeline that share its VAE, such as VisualCloze's two."""
    pipelines = [value for value in vars(pipe).values() if hasattr(value, "components") and hasattr(value, "vae")]
    return [inner for inner in pipelines if inner.vae is pipe.vae]


def _named_parts(parts: str | Iterable[str]) -> Sequence[str]:
    try:
        names: Sequence[str] = PARTS if parts == "auto" else [parts] if isinstance(parts, str) else list(parts)
    except TypeError:
        names = [repr(parts)]
    for name in names:
        if name not in PARTS:
            near = difflib.get_close_matches(str(name), PARTS, n=1)
            raise RequestError(
                "no such part of a pipeline can be replaced",
                saw=repr(name),
                expected='"auto", or names out of ' + ", ".join(PARTS),
                hint=near[0] if near else None,
            )
    if not names:
        raise RequestError("nothing to replace", saw="no parts", expected='"auto", or at least one name')
    return names


def _classes_asked_for(pipeline: type) -> set[str]:
    """Return the classes of VAEs for which a pipeline's code asks by ``isinstance``, such as Sana-Video's."""
    try:
        code = inspect.getsource(sys.modules[pipeline.__module__])
    except (KeyError, OSError, TypeError):  # written in a console, for example
        return set()
    return set(re.findall(r"\w+", " ".join(re.findall(r"isinstance\(self\.vae, ([^)]*)\)", code))))


def _module_like(pipe: Any) -> Any:
    """Return the module whose dtype and device the remote VAE gets: the pipeline's VAE, else its denoiser."""
    present = (getattr(pipe, "vae", None), denoiser_of(pipe))
    return next((module for module in present if module is not None), pipe)


def _usable(device: torch.device) -> torch.device:
    # A module with offloaded weights is on "meta", and pipelines find their device in another way.
    return torch.device("cpu") if device.type == "meta" else device


def _place_like_offloaded(vae: RemoteVAE, pipe: Any) -> None:
    """Add a hook to ``vae`` if the pipeline's modules are offloaded already.

    Pipelines read their device from the first module's hook, and conclude from a missing hook that no module is
    offloaded.
    """
    if any(hasattr(part, "_hf_hook") for part in pipe.components.values()):
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module  # type: ignore[import-untyped]

        add_hook_to_module(vae, AlignDevicesHook(execution_device=pipe._execution_device))


def _learned(pipe: Any, vae: RemoteVAE) -> dict[str, Any]:
    """Return the pipeline's other attributes that change with its VAE.

    A pipeline is always made with the VAE, because Bria's class, for example, completes the VAE's config.

    Raises:
        Mismatch: for a pipeline without a VAE if its class cannot make another one.
    """
    with_vae = _made_with(pipe, vae)
    if pipe.vae is not None:
        return {}
    if with_vae is None:
        raise Mismatch(
            f"nothing tells what {type(pipe).__name__} does with a VAE",
            saw="vae=None, and an __init__ that does not take the pipeline's parts again",
            hint="loading it with its VAE",
        )
    return _corrected(pipe, with_vae)


def _made_with(pipe: Any, vae: RemoteVAE | None) -> Any:
    """Return a new pipeline of the same class and parts, but with ``vae``; None if the class cannot make it."""
    known = {**pipe.config, **_parts_of(pipe), "vae": vae}
    takes = inspect.signature(type(pipe).__init__).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    given = {name: known[name] for name in known if name in takes or (takes_all and not name.startswith("_"))}
    try:
        with _without_warnings():
            return type(pipe)(**given)
    except Exception:
        return None


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress diffusers' warnings, which were shown when the pipeline was first made."""
    log = logging.getLogger("diffusers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _parts_of(pipe: Any) -> dict[str, Any]:
    """Return a pipeline's components; its own property raises for classes whose ``__init__`` adds others."""
    return {name: vars(pipe)[name] for name in pipe.config if name in vars(pipe)}


def _corrected(pipe: Any, with_vae: Any) -> dict[str, Any]:
    """Return corrected values of attributes for which the pipeline's ``__init__`` used defaults without a VAE.

    diffusers' pipelines store ``vae_scale_factor``, sometimes ``latent_channels``, and image processors whose
    settings are a multiple of these.  The multiple depends on the class, so the attributes of a pipeline that the
    class made with this VAE are used where they differ.

    Args:
        pipe: The pipeline, which has no VAE.
        with_vae: The pipeline that :func:`_made_with` returned.
    """
    without = _made_with(pipe, None)
    assumed = vars(pipe if without is None else without)
    others = {name for name in vars(pipe) if not name.startswith("_")} - _parts_of(pipe).keys()
    return {
        name: value
        for name, value in vars(with_vae).items()
        if name in others and not _is_alike(value, assumed.get(name))
    }


def _is_alike(value: Any, other: Any) -> bool:
    """Return whether numbers, or settings of image processors, are equal; True for all other values."""
    if hasattr(value, "config") and not hasattr(value, "components"):
        return type(value) is type(other) and bool(value.config == other.config)
    return not isinstance(value, int | float) or value == other
