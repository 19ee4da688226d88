"""Language models as text encoders: a text in a template, and hidden states of some layers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from ....errors import EngineFailure, RequestError
from ....models.comfyui_text import ChatTower
from .prompt_weights import plain, weighted_pieces
from .tokens import Weighted
from .towers import reweighted


def run_chat(tower: ChatTower, model: Any, tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the states (1, tokens, width) of a text in float32, and the mask (1, tokens) if ComfyUI passes one on.

    Raises:
        RequestError: for a text with special tokens, which ComfyUI may take for parts of the template, and for
            weights that cannot be.
    """
    device = model.get_input_embeddings().weight.device
    weighted = _tokens(tower, tokenizer, text)
    ids, weights = [token for token, _ in weighted], [weight for _, weight in weighted]
    padding, pad = max(0, tower.least - len(ids)), tokenizer.pad_token_id
    rows, masks = [ids + [pad] * padding], [[1] * len(ids) + [0] * padding]
    is_weighted = any(weight != 1.0 for weight in weights)
    if is_weighted:
        rows.append([tokenizer.bos_token_id] + [pad] * (len(rows[0]) - 1))
        masks.append([1] + [0] * (len(rows[0]) - 1))
    tokens = torch.tensor(rows, dtype=torch.int64, device=device)
    mask = torch.tensor(masks, dtype=torch.int64, device=device)
    states = _states(tower, model, tokens, mask if padding or is_weighted else None)
    if is_weighted:
        states = reweighted(states[:1], states[-1], [weights])
    begin, end = _CUTS[tower.cuts](ids, tokenizer) if tower.cuts else (0, len(rows[0]))
    mask = mask[:1, begin:end]
    return states[:, begin:end], mask if tower.tells_mask or padding else None


def _tokens(tower: ChatTower, tokenizer: Any, text: str) -> list[Weighted]:
    special = set(tokenizer.all_special_ids)
    if special & set(_ids(tokenizer, plain(text))):
        raise RequestError(
            "a prompt has a special token of the text encoder",
            expected="text alone: for some of these tokens ComfyUI leaves out the template",
        )
    before, after = tower.template.split("{}")
    whole = before + text + after
    # Escapes of parentheses are read, also where weights are not.
    pieces = weighted_pieces(whole) if tower.reads_weights else [(plain(whole), 1.0)]
    start = [(tokenizer.bos_token_id, 1.0)] if tower.has_start else []
    return start + [(token, weight) for piece, weight in pieces for token in _ids(tokenizer, piece)]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _qwen_turn(ids: list[int], tokenizer: Any) -> tuple[int, int]:
    """Return where the second turn begins, or its text if its first two tokens are the role and a line break."""
    turn = tokenizer.convert_tokens_to_ids("<|im_start|>")
    begin = [place for place, token in enumerate(ids) if token == turn][1]
    opening = [*_ids(tokenizer, "user"), *_ids(tokenizer, "\n")]
    is_usual = ids[begin + 1 : begin + 3] == opening and len(ids) > begin + 3
    return begin + 3 if is_usual else begin, len(ids)


def _llama_turn(ids: list[int], tokenizer: Any) -> tuple[int, int]:
    """Return where the user's text begins, or the end of its header if no empty line follows; and where it ends."""
    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    start, end, eot = map(tokenizer.convert_tokens_to_ids, names)
    header = [start, *_ids(tokenizer, "user"), end]
    begin = max(place for place in range(len(ids)) if ids[place : place + 3] == header) + 2
    last = ids.index(eot, begin) + 1
    is_usual = ids[begin + 1 : begin + 2] == _ids(tokenizer, "\n\n") and len(ids) > begin + 2
    return begin + 2 if is_usual else begin, last


_CUTS = {"qwen": _qwen_turn, "llama": _llama_turn}


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
