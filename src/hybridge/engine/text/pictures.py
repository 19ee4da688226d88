"""Pictures that go into embeddings, made ready as the pipelines' ``__call__`` does before ``encode_prompt``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import RequestError
from ...models.text_side import Picture

#: Arguments of ``encode_prompt`` for the prompt, and those for the negative prompt.
Prepared = tuple[dict[str, Any], dict[str, Any]]

#: The area to which Qwen-Image-Edit brings the picture that its encoder sees, and that of Edit-Plus.
_EDIT_AREA, _EDIT_PLUS_AREA = 1024 * 1024, 384 * 384


#: Every how many of a picture's tokens HunyuanVideo takes, by how its transformer is conditioned.
_INTERLEAVE = {"latent_concat": 2, "token_replace": 4}


def _qwen_edit(pipe: Any, images: Sequence[Any], options: Mapping[str, Any]) -> Prepared:
    image = _fitted(pipe, _only(images), _EDIT_AREA)
    return {"image": image}, {"image": image}


def _qwen_edit_plus(pipe: Any, images: Sequence[Any], options: Mapping[str, Any]) -> Prepared:
    fitted = [_fitted(pipe, image, _EDIT_PLUS_AREA) for image in images]
    return {"image": fitted}, {"image": fitted}


def _hunyuan_video(pipe: Any, images: Sequence[Any], options: Mapping[str, Any]) -> Prepared:
    from PIL import Image

    name = "image_embed_interleave"
    kind = getattr(pipe.transformer.config, "image_condition_type", None)
    own = options.get(name) or _INTERLEAVE.get(str(kind), 1)
    others = inspect.signature(pipe.encode_prompt).parameters[name].default
    image = _only(images)
    # A black picture looks alike in every size.
    return {"image": image, name: own}, {"image": Image.new("RGB", image.size, 0), name: others}


def _fitted(pipe: Any, image: Any, area: int) -> Any:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    width, height = calculate_dimensions(area, image.size[0] / image.size[1])[:2]
    return pipe.image_processor.resize(image, height, width)


def _only(images: Sequence[Any]) -> Any:
    if len(images) != 1:
        raise RequestError("more than one picture", saw=len(images), expected="one")
    return images[0]


PREPARED: dict[Picture, Callable[[Any, Sequence[Any], Mapping[str, Any]], Prepared]] = {
    "qwen edit": _qwen_edit,
    "qwen edit plus": _qwen_edit_plus,
    "hunyuan video": _hunyuan_video,
}
