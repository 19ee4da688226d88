"""Text encoders of a server, for sockets of the type CLIP.

ComfyUI's nodes make tokens of a text first, and encode them then.  Here a text stays a text until it is encoded:
weights and chunks are the server's work.  Nodes with a text for each encoder exchange the tokens of one encoder for
those of another text, which works here, too; what looks at single tokens does not, and is told so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch

from .messages import NodeError
from .servers import Server
from .text import check_text, encode_text

#: The name of an encoder's tokens in ComfyUI, and the argument with its text; by the beginning of the class of the
#: model's pipelines in diffusers, of which the first that fits counts.
_ENCODERS: dict[str, dict[str, str]] = {
    "StableDiffusionXL": {"l": "prompt", "g": "prompt_2"},
    "StableDiffusion3": {"l": "prompt", "g": "prompt_2", "t5xxl": "prompt_3"},
    "StableDiffusion": {"l": "prompt"},
    "Flux2": {"text": "prompt"},
    "Flux": {"l": "prompt", "t5xxl": "prompt_2"},
}

#: Of models with one text, whose tokens no node of ComfyUI exchanges.
_ONE_TEXT = {"text": "prompt"}


class Text:
    """A text in the place of its tokens, of one chunk: the server gives all encoders of a model as many chunks.

    Attributes:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __len__(self) -> int:
        """Return 1, so that nodes that fill up shorter texts leave them as they are."""
        return 1

    def __iter__(self) -> Iterator[Any]:
        """Raise NodeError: there are no tokens here."""
        _refuse_tokens()

    def __getitem__(self, _: Any) -> Any:
        """Raise NodeError: there are no tokens here."""
        _refuse_tokens()


class Texts(dict[str, Any]):
    """What a CLIP makes of a text: a :class:`Text` for each encoder."""

    def __missing__(self, name: str) -> NoReturn:
        """Raise NodeError: this model has no such encoder."""
        raise NodeError(
            f"This model's text encoders on the server are {', '.join(self)}; a node asks for {name!r}."
        )


class RemoteCLIP:
    """Text encoders of a server in the place of ComfyUI's CLIP.

    Args:
        server: The server.
        facts: The model's entry of ``/v1/models``.

    Attributes:
        model: The server's name for the model.
        layer_idx: The layer that *CLIP Set Last Layer* has chosen, -24 to -1; None for the model's own.
        use_clip_schedule, apply_hooks_to_conds, tokenizer_options: As ComfyUI's CLIP has them.

    Raises:
        NodeError: for a model whose text ComfyUI's convention is not known for.
    """

    def __init__(self, server: Server, facts: Mapping[str, Any]) -> None:
        check_text(server, facts)
        self.model = str(facts["name"])
        self._server, self._facts = server, facts
        pipeline = str(facts["text"].get("class"))
        fitting = (encoders for begin, encoders in _ENCODERS.items() if pipeline.startswith(begin))
        self._encoders = next(fitting, _ONE_TEXT)
        self.layer_idx: int | None = None
        self.use_clip_schedule = False
        self.apply_hooks_to_conds = None
        self.tokenizer_options: dict[str, Any] = {}

    def __repr__(self) -> str:
        """Name the model and the profile: ComfyUI shows nodes' inputs in errors."""
        return f"RemoteCLIP({self.model!r} on {self._server.profile!r})"

    # ---------------------------------------------------------------------------------------- what nodes call

    def tokenize(self, text: str, return_word_ids: bool = False, **options: Any) -> Texts:
        """Return the text for each encoder.

        Raises:
            NodeError: for whatever would go into the tokens besides: pictures, templates, numbers of words.
        """
        given = [name for name, value in options.items() if value is not None and not _is_empty(value)]
        if return_word_ids or given:
            what = ", ".join(given) or "numbers of words"
            raise NodeError(
                f"A node puts {what} into the text for {self.model!r}, which needs local text encoders."
            )
        return Texts({name: Text(text) for name in self._encoders})

    def encode_from_tokens_scheduled(
        self,
        tokens: Texts,
        unprojected: bool = False,
        add_dict: Mapping[str, Any] | None = None,
        show_pbar: bool = True,
    ) -> list[list[Any]]:
        """Return the CONDITIONING of what :meth:`tokenize` gave, with more entries if ``add_dict`` has some."""
        if unprojected:
            raise NodeError(
                f"{self.model!r} gives its pooled vector projected alone; this needs local text encoders."
            )
        return [[cond, {**others, **(add_dict or {})}] for cond, others in self._encoded(tokens)]

    def encode_from_tokens(self, tokens: Texts, return_pooled: Any = False, return_dict: bool = False) -> Any:
        """Return the tensor of what :meth:`tokenize` gave: alone, with the pooled vector, or in a dictionary."""
        if return_pooled == "unprojected":
            self.encode_from_tokens_scheduled(tokens, unprojected=True)
        ((cond, others),) = self._encoded(tokens)
        if return_dict:
            return {"cond": cond, **others}
        return (cond, others["pooled_output"]) if return_pooled else cond

    def encode(self, text: str) -> torch.Tensor:
        """Return the tensor of a text, (1, tokens, width)."""
        found: torch.Tensor = self.encode_from_tokens(self.tokenize(text))
        return found

    def clone(self, disable_dynamic: bool = False) -> RemoteCLIP:
        """Return another one, whose layer can be chosen."""
        made = RemoteCLIP(self._server, self._facts)
        made.layer_idx = self.layer_idx
        return made

    def clip_layer(self, layer_idx: int) -> None:
        """Choose the layer, as *CLIP Set Last Layer* does."""
        self.layer_idx = layer_idx

    def load_model(self, tokens: Any = None) -> None:
        """Do nothing: the server loads the model when it is asked for a text."""

    def is_dynamic(self) -> bool:
        """Return False: nothing of it is in this machine's memory."""
        return False

    # ---------------------------------------------------------------------------------------- what cannot be

    def set_tokenizer_option(self, option_name: str, value: Any) -> NoReturn:
        """Raise NodeError: the server pads as the model's own text encoders do."""
        raise NodeError(f"{self.model!r} takes no options of tokenizers; a node that sets them needs a local CLIP.")

    def add_patches(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NodeError: LoRAs of text encoders are the server's."""
        self._refuse_module()

    def get_sd(self) -> NoReturn:
        """Raise NodeError: there are no weights to save."""
        raise NodeError(f"The weights of {self.model!r} are on the server, so they cannot be saved from here.")

    def state_dict_for_saving(self) -> NoReturn:
        """Raise NodeError, as newer releases of ComfyUI ask for the weights."""
        self.get_sd()

    def get_key_patches(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NodeError: merging needs the module itself."""
        self._refuse_module()

    def decode(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NodeError: tokens stay on the server."""
        self.generate()

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        """Raise NodeError: the server reads text and writes none."""
        raise NodeError(f"{self.model!r} encodes text on a server; to write text, a node needs a local model.")

    @property
    def cond_stage_model(self) -> NoReturn:
        """Raise NodeError, for nodes that change the module itself."""
        self._refuse_module()

    @property
    def patcher(self) -> NoReturn:
        """Raise NodeError, for nodes that change the module itself."""
        self._refuse_module()

    def _refuse_module(self) -> NoReturn:
        raise NodeError(
            f"{self.model!r} runs on a server, so a LoRA or a hook cannot change it from here: give the node the"
            " model without the CLIP, and the LoRA of the text encoders to the server."
        )

    # ------------------------------------------------------------------------------------------ how it is done

    def _encoded(self, tokens: Texts) -> list[list[Any]]:
        texts: dict[str, str] = {}
        for name, argument in self._encoders.items():
            text = tokens.get(name) if isinstance(tokens, Mapping) else None
            if not isinstance(text, Text):
                _refuse_tokens()
            texts[argument] = text.text
        if len(set(texts.values())) == 1:
            texts = {"prompt": texts["prompt"]}
        return encode_text(self._server, self._facts, texts, clip_layer=self.layer_idx)


def _is_empty(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict, str)) and not value


def _refuse_tokens() -> NoReturn:
    raise NodeError(
        "A node changes the tokens of a text itself. Tokens of a remote CLIP are made on the server: such a node"
        " needs local text encoders."
    )
