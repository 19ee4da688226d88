"""A server's text encoders as a replacement of a pipeline's ``encode_prompt``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from ..errors import Mismatch
from ..models import TextSide
from ..models.text_side import NEGATIVE_PREFIX
from .client import Client
from .prompts import Embeddings, repeated
from .reply import warn_caller
from .text_comparison import state_of

#: The arguments of ``encode_prompt`` for the number of pictures of each prompt.
_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")

#: The arguments of ``encode_prompt`` for pictures.
_PICTURES = ("image", "images")

#: Denoiser components, and the entry of their config with the width of ``prompt_embeds``.
_WIDTHS = (("unet", "cross_attention_dim"), ("transformer", "joint_attention_dim"))


class RemoteTextEncoder:
    """A replacement of a pipeline's ``encode_prompt`` that runs on a server.

    The pipeline calls it like its own method, and so decides whether negative embeddings are needed, how many
    pictures there are of each prompt, and which layers are used.  The result equals that of the pipeline's own
    method, in the denoiser's dtype and on the requested device.

    Args:
        client: The client of the server; the caller has to close it.
        model: The server's name for the model.
        side: The facts about the pipeline's text encoders.
        pipe: The pipeline.
        weights: What the server calls the files whose weights equal those of the pipeline's own encoders; None if
            it has none, or if they were not compared.
        has_own: Whether the pipeline has text encoders of its own.  They encode if they change later, or if the
            server's do: nothing else would have their LoRAs and added tokens.

    Attributes:
        model: The server's name for the model.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        side: TextSide,
        pipe: Any,
        *,
        weights: str | None = None,
        has_own: bool = False,
    ) -> None:
        self.model = model
        self._weights = weights
        self._state = state_of(pipe, side) if has_own else None
        self._client, self._side, self._pipe = client, side, pipe
        self._own = type(pipe).encode_prompt
        self._signature = inspect.signature(self._own)
        self._last: tuple[str, Embeddings] | None = None

    def __repr__(self) -> str:
        return f"RemoteTextEncoder({self.model!r} of {self._client.server})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Encode prompts, with the arguments and the result of the pipeline's own ``encode_prompt``.

        Raises:
            ClientError: as for :class:`~hybridge.client.Client`.
            Mismatch: when the width of the embeddings differs from the denoiser's.
        """
        bound = self._signature.bind(self._pipe, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        own = [output.name for output in self._side.outputs]
        if any(given.get(f"{prefix}{name}") is not None for name in own for prefix in ("", NEGATIVE_PREFIX)):
            return self._own(self._pipe, *args, **kwargs)  # it is given embeddings, and only repeats them
        if self._state is not None and state_of(self._pipe, self._side) != self._state:
            warn_caller("the pipeline's text encoders have changed since connect, so they encode, not the server's")
            return self._own(self._pipe, *args, **kwargs)
        if given.get("lora_scale") not in (None, 1, 1.0):
            warn_caller("lora_scale does not reach the text encoders, which are on a server")
        call = next(one for one in self._side.calls if one.arguments.items() <= given.items())
        count = next((given[name] for name in _COUNTS if given.get(name) is not None), 1)
        embeddings = self._fetch(self._inputs(given), self._images(given))
        if self._weights is not None and embeddings.metadata.get("weights") != self._weights:
            warn_caller(f"{self.model} has other weights since connect, so the pipeline's own text encoders encode")
            return self._own(self._pipe, *args, **kwargs)
        self._check_width(embeddings)
        values = {
            name: self._placed(repeated(value, embeddings.layouts[name], count), given, embeddings)
            for name, value in embeddings.items()
            if name in embeddings.layouts
        }
        if None not in call.returns:
            return tuple(values.get(name) for name in call.returns if name is not None)
        # It returns more than embeddings, such as positions, which it computes from given embeddings.
        takes = self._signature.parameters
        given |= {name: value for name, value in values.items() if name in takes}
        given |= {name: 1 for name in _COUNTS if name in given}
        for name in self._prompt_names():
            if isinstance(given.get(name), (str, list, tuple)):
                texts = [given[name]] if isinstance(given[name], str) else given[name]
                given[name] = [text for text in texts for _ in range(count)]
        return self._own(**given)

    def _prompt_names(self) -> list[str]:
        return [one.name for one in self._side.parameters if one.kind in ("prompt", "negative")]

    def _inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values to send: all arguments of ``encode_prompt`` about text, including its own defaults."""
        inputs = {}
        is_guided = given.get("do_classifier_free_guidance", True)
        for parameter in self._side.parameters:
            is_negative = parameter.kind == "negative"
            if parameter.name in given and (is_guided or not is_negative):
                value = given[parameter.name]
                inputs[parameter.name] = list(value) if isinstance(value, (list, tuple)) else value
        if inputs.get("prompt") is None:
            # The negative prompt of pipelines that have no other default for it.
            inputs["prompt"] = [""] * int(given.get(self._side.count or "") or 1)
        return inputs

    def _images(self, given: Mapping[str, Any]) -> list[Any]:
        if self._side.picture is None:
            return []
        images: Any = next((given[name] for name in _PICTURES if given.get(name) is not None), [])
        return list(images) if isinstance(images, (list, tuple)) else [images]

    def _fetch(self, inputs: dict[str, Any], images: list[Any]) -> Embeddings:
        """Return the embeddings; one request serves pipelines that ask for parts of them in several calls."""
        key = json.dumps(inputs, sort_keys=True, default=str) if len(self._side.calls) > 1 and not images else ""
        if key and self._last is not None and self._last[0] == key:
            (_, known), self._last = self._last, None
            return known
        embeddings: Embeddings = self._client.encode_prompt(
            inputs.pop("prompt"), model=self.model, images=images or None, kind="torch", **inputs
        )
        if key:
            self._last = (key, embeddings)
        return embeddings

    def _placed(self, value: Any, given: Mapping[str, Any], embeddings: Embeddings) -> Any:
        """Move a value to the requested device, and convert tensors of the server's dtype to the denoiser's."""
        if isinstance(value, list):
            return [self._placed(one, given, embeddings) for one in value]
        device = given.get("device") or self._pipe._execution_device
        denoiser = getattr(self._pipe, "transformer", None) or getattr(self._pipe, "unet", None)
        dtype = given.get("dtype") or getattr(denoiser, "dtype", None)
        is_servers = str(value.dtype).removeprefix("torch.") == embeddings.metadata.get("dtype")
        return value.to(device, dtype) if is_servers and dtype is not None else value.to(device)

    def _check_width(self, embeddings: Embeddings) -> None:
        configs = [(getattr(getattr(self._pipe, part, None), "config", None) or {}, name) for part, name in _WIDTHS]
        # A denoiser with its own projection of the embeddings takes the projection's width.
        said = [config.get(name) for config, name in configs if not config.get("encoder_hid_dim")]
        needed = next((width for width in said if isinstance(width, int)), None)
        value = embeddings.get("prompt_embeds")
        if needed is not None and value is not None and not isinstance(value, list) and value.shape[-1] != needed:
            raise Mismatch(
                f"{self.model} of {self._client.server} has not the text encoders of this pipeline",
                saw=f"embeddings of {value.shape[-1]} numbers for each token",
                expected=f"{needed}, by the config of its denoiser",
            )
