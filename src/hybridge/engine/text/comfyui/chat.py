"""Language models as text encoders: a text in a template, and hidden states of some layers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from ....errors import EngineFailure, RequestError
from ....models.comfyui_text import ChatTower
from .prompt_weights import plain


def run_chat(tower: ChatTower, model: Any, tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the states (1, tokens, width) of a text in float32, and the mask (1, tokens) if ComfyUI passes one on.

    Raises:
        RequestError: for a text with special tokens, which ComfyUI may take for parts of the template.
    """
    device = model.get_input_embeddings().weight.device
    ids = _tokens(tower, tokenizer, text)
    padding = max(0, tower.least - len(ids))
    cut = _user_turn(ids, tokenizer) if tower.cuts_template else 0
    tokens = torch.tensor([ids + [tokenizer.pad_token_id] * padding], dtype=torch.int64, device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * padding], dtype=torch.int64, device=device)
    states = _states(tower, model, tokens, mask if padding else None)[:, cut:]
    mask = mask[:, cut:]
    return states, mask if tower.tells_mask or padding else None


def _tokens(tower: ChatTower, tokenizer: Any, text: str) -> list[int]:
    text = plain(text)  # escapes of parentheses are read, although weights are not
    special = set(tokenizer.all_special_ids)
    if special & set(_ids(tokenizer, text)):
        raise RequestError(
            "a prompt has a special token of the text encoder",
            expected="text alone: for some of these tokens ComfyUI leaves out the template",
        )
    start = [tokenizer.bos_token_id] if tower.has_start else []
    before, after = tower.template.split("{}")
    return start + _ids(tokenizer, before + text + after)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _user_turn(ids: list[int], tokenizer: Any) -> int:
    """Return where the second turn begins, or its text if its first two tokens are the role and a line break."""
    turn = tokenizer.convert_tokens_to_ids("<|im_start|>")
    begin = [place for place, token in enumerate(ids) if token == turn][1]
    opening = [*_ids(tokenizer, "user"), *_ids(tokenizer, "\n")]
    is_usual = ids[begin + 1 : begin + 3] == opening and len(ids) > begin + 3
    return begin + 3 if is_usual else begin


def _states(tower: ChatTower, model: Any, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    decoder = _decoder_of(model)
    kept: dict[int, torch.Tensor] = {}

    def keep(key: int, module: Any, hooks: ExitStack) -> None:
        def hook(_: Any, __: Any, made: Any) -> None:
            kept[key] = made[0] if isinstance(made, tuple) else made

        hooks.callback(module.register_forward_hook(hook).remove)

    with ExitStack() as hooks:
        if tower.layer is None and not tower.layers:
            keep(0, decoder.norm, hooks)
        elif tower.layer is not None:
            keep(0, decoder.layers[tower.layer], hooks)
        for number in tower.layers:  # of the hidden states, of which the first are the token embeddings
            keep(number, decoder.layers[number - 1], hooks)
        model(input_ids=tokens, attention_mask=mask, use_cache=False)
    return torch.cat([kept[number] for number in tower.layers or (0,)], dim=-1).float()


def _decoder_of(model: Any) -> Any:
    """Return the part of a model that has the layers and the norm after them."""
    for module in model.modules():
        if all(hasattr(module, name) for name in ("embed_tokens", "layers", "norm")):
            return module
    raise EngineFailure("the text encoder has no layers that are known here", saw=type(model).__name__)
