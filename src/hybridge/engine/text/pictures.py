"""Pictures that go into embeddings, made ready as the pipelines' ``__call__`` does before ``encode_prompt``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import RequestError
from ...models.text_side import Picture

#: Arguments of ``encode_prompt`` for the prompt, and those for the negative prompt.
Prepared = tuple[dict[str, Any], dict[str, Any]]

#: The area to which Qwen-Image-Edit brings the picture that its encoder sees, and that of Edit-Plus.
_EDIT_AREA, _EDIT_PLUS_AREA = 1024 * 1024, 384 * 384


def _qwen_edit(pipe: Any, images: Sequence[Any]) -> Prepared:
    image = _fitted(pipe, _only(images), _EDIT_AREA)
    return {"image": image}, {"image": image}


def _qwen_edit_plus(pipe: Any, images: Sequence[Any]) -> Prepared:
    fitted = [_fitted(pipe, image, _EDIT_PLUS_AREA) for image in images]
    return {"image": fitted}, {"image": fitted}


def _hunyuan_video(pipe: Any, images: Sequence[Any]) -> Prepared:
    from PIL import Image

    image = _only(images)
    # The video has the picture's size, unless a caller asks for another; a black picture looks alike in all.
    return {"image": image}, {"image": Image.new("RGB", image.size, 0)}


def _fitted(pipe: Any, image: Any, area: int) -> Any:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    width, height = calculate_dimensions(area, image.size[0] / image.size[1])[:2]
    return pipe.image_processor.resize(image, height, width)


def _only(images: Sequence[Any]) -> Any:
    if len(images) != 1:
        raise RequestError("more than one picture", saw=len(images), expected="one")
    return images[0]


PREPARED: dict[Picture, Callable[[Any, Sequence[Any]], Prepared]] = {
    "qwen edit": _qwen_edit,
    "qwen edit plus": _qwen_edit_plus,
    "hunyuan video": _hunyuan_video,
}
