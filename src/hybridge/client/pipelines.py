"""One line that makes a diffusers pipeline hybrid: its VAE and its text encoders are those of a server."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..errors import ClientError, Mismatch, RequestError
from .client import Client
from .model_matching import choose, denoiser_of, need_of, read_models
from .remote_text import RemoteTextEncoder
from .remote_vae import RemoteVAE
from .text_matching import choose_text, lacks_encoders, read_text_models, side_of
from .transport import ANSWER_TIMEOUT_S

#: The parts of a pipeline that a server can run.
PARTS = ("vae", "text")


@dataclass(frozen=True, slots=True)
class Replacement:
    """A part of the pipeline, the server's model that took its place, and why that one."""

    part: str
    model: str
    reason: str


#: Stands for an attribute that the pipeline's class has and the pipeline itself had not.
_ABSENT = object()


class _Changes:
    """What was set on pipelines, and what was there before.

    Args:
        values: The pipelines, changed when this returns, each with the new values of its attributes.
        owned: Closed when the changes are undone.
    """

    def __init__(self, values: Sequence[tuple[Any, Mapping[str, Any]]], owned: contextlib.ExitStack) -> None:
        self._values = list(values)
        # A pipeline's config is where setting a part leaves a trace.
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
    """What :func:`connect` did.  ``with`` undoes it at the end of the block.

    Attributes:
        server: The server's address, without secrets.
        replaced: What was replaced, by what, and why.
    """

    server: str
    replaced: tuple[Replacement, ...]
    _changes: _Changes = field(repr=False)

    def undo(self) -> None:
        """Puts everything back as it was before.  Once is enough; again does nothing.

        Raises:
            ClientError: when something else has taken a part's place since, such as a later connection.
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
    """Lets ``server`` run the heavy parts of a diffusers pipeline; the pipeline is used as before.

    ::

        without = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        pipe = StableDiffusionXLPipeline.from_pretrained("…", **without, torch_dtype=torch.float16).to("cuda")
        hybridge.connect(pipe, "http://gpu-box:8000")
        pipe("a lighthouse in a storm").images[0]

    Args:
        pipe: Any pipeline with a ``vae`` of class AutoencoderKL or AutoencoderTiny, or of a known class with
            ``vae=None``; for ``text``, one of a class in :mod:`hybridge.models.text_sides`.  It is changed in
            place.
        server: Its URL, as for :class:`Client`; or a client, which then stays the caller's to close.
        parts: What to replace, ``vae`` or ``text`` or both.  ``auto`` is the VAE, and the text encoders of a
            pipeline that was loaded without them, where the server has them: nothing tells whether those that a
            pipeline has are the server's.
        model: The server's model to take for the VAE; without, the one that fits the pipeline's config or class.
        text_model: The same for the text encoders; without, the only one that serves such a pipeline.
        api_key: Sent as ``Authorization: Bearer``; not together with a client.
        timeout: Seconds to wait for an answer; not together with a client.

    Raises:
        ClientError: as :class:`Client` has them; Mismatch when no model of the server fits.  Nothing has changed
            then.
        RequestError: for parts that do not exist, and for what a client that is given has of its own.
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
        if "vae" in wanted:
            vae, chosen, reason = _remote_vae(pipe, client, documents, model)
            values += [(part, {"vae": vae, **_learned(part, vae)}) for part in (pipe, *_inner(pipe))]
            replaced.append(Replacement("vae", chosen, reason))
        is_needed = parts != "auto" or text_model is not None
        text = _remote_text(pipe, client, documents, text_model, is_needed=is_needed) if "text" in wanted else None
        if text is not None:
            encoder, reason = text
            values.append((pipe, {"encode_prompt": encoder}))
            replaced.append(Replacement("text", encoder.model, reason))
        return Connection(client.server, tuple(replaced), _Changes(values, owned.pop_all()))


def _remote_vae(
    pipe: Any, client: Client, documents: Sequence[Any], model: str | None
) -> tuple[RemoteVAE, str, str]:
    """The module that takes the place of the pipeline's VAE, the server's name for it, and why that one."""
    need = need_of(pipe, is_chosen=model is not None)
    chosen, reason = choose(need, read_models(documents, client.server), model, client.server)
    like = _module_like(pipe)
    vae = RemoteVAE(client, chosen, dtype=like.dtype, device=_usable(like.device))
    _place_like_offloaded(vae, pipe)
    if chosen.dtype != (own := str(vae.dtype).removeprefix("torch.")):
        reason += f"; it computes in {chosen.dtype}, the pipeline's is {own}"
    return vae, chosen.name, reason


def _remote_text(
    pipe: Any, client: Client, documents: Sequence[Any], asked: str | None, *, is_needed: bool
) -> tuple[RemoteTextEncoder, str] | None:
    """What takes the place of ``encode_prompt``, and why that one; None where nothing need or can.

    Raises:
        Mismatch: where nothing can, and somebody asked for it.
    """
    known = side_of(pipe)
    if not is_needed and (known is None or not lacks_encoders(pipe, known[1])):
        return None
    try:
        chosen, reason = choose_text(pipe, read_text_models(documents), asked, client.server)
    except Mismatch:
        if is_needed:
            raise
        return None
    if known is None:
        raise AssertionError("what nothing is known of was chosen for")
    return RemoteTextEncoder(client, chosen.name, known[1], pipe), reason


def _inner(pipe: Any) -> list[Any]:
    """Pipelines that a pipeline is made of and shares its VAE with, as VisualCloze's two."""
    pipelines = [value for value in vars(pipe).values() if hasattr(value, "components") and hasattr(value, "vae")]
    return [inner for inner in pipelines if inner.vae is pipe.vae]


def _named_parts(parts: str | Iterable[str]) -> Sequence[str]:
    names: Sequence[str] = PARTS if parts == "auto" else [parts] if isinstance(parts, str) else list(parts)
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


def _module_like(pipe: Any) -> Any:
    """The module whose dtype and device the remote VAE takes over: the VAE that was there, else the denoiser."""
    present = (getattr(pipe, "vae", None), denoiser_of(pipe))
    return next((module for module in present if module is not None), pipe)


def _usable(device: torch.device) -> torch.device:
    # While its weights are offloaded a module is on "meta", and pipelines look elsewhere for where they compute.
    return torch.device("cpu") if device.type == "meta" else device


def _place_like_offloaded(vae: RemoteVAE, pipe: Any) -> None:
    """Hooks ``vae`` if the pipeline's modules are offloaded already.

    Of offloaded modules, pipelines ask the first one's hook where to compute, and take one without for the answer
    that nothing is offloaded.
    """
    if any(hasattr(part, "_hf_hook") for part in pipe.components.values()):
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module  # type: ignore[import-untyped]

        add_hook_to_module(vae, AlignDevicesHook(execution_device=pipe._execution_device))


def _learned(pipe: Any, vae: RemoteVAE) -> dict[str, Any]:
    """What changes in the pipeline besides its VAE.

    Its class is shown the VAE in any case: Bria's, for one, fills in what the VAE's config leaves open.

    Raises:
        Mismatch: for a pipeline without a VAE whose class cannot be made anew.
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
    """A pipeline of the same class and parts that its class made with ``vae``; None where it cannot."""
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
    """Leaves out what diffusers has said when the pipeline was made."""
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
    """Its components; not by its property for them, which raises for classes whose ``__init__`` keeps others."""
    return {name: vars(pipe)[name] for name in pipe.config if name in vars(pipe)}


def _corrected(pipe: Any, with_vae: Any) -> dict[str, Any]:
    """What the pipeline's ``__init__`` took for granted because it had no VAE to ask, made right.

    diffusers' pipelines keep ``vae_scale_factor``, in some ``latent_channels``, and processors of pictures made of
    a multiple of the one and of the other.  Which multiple is their own affair: what their class makes of this VAE
    and not of None is taken over.

    Args:
        pipe: The pipeline, which has no VAE.
        with_vae: What :func:`_made_with` gave.
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
    """Equal numbers, and processors of pictures of equal settings; of other values nothing is known to differ."""
    if hasattr(value, "config") and not hasattr(value, "components"):
        return type(value) is type(other) and bool(value.config == other.config)
    return not isinstance(value, int | float) or value == other
