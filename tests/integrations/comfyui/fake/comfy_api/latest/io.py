"""Inputs, outputs, schemas and nodes, with the names and arguments that ComfyUI 0.3.75 and 0.38.1 both have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Input:
    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    extra_dict: dict[str, Any] | None = None
    raw_link: bool | None = None


@dataclass
class _Widget(_Input):
    default: Any = None
    socketless: bool | None = None
    widget_type: str | None = None
    force_input: bool | None = None


@dataclass
class _Output:
    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False


class Latent:
    io_type = "LATENT"
    Input, Output = _Input, _Output


class Image(Latent):
    io_type = "IMAGE"


class Vae(Latent):
    io_type = "VAE"


class Conditioning(Latent):
    io_type = "CONDITIONING"


class Clip(Latent):
    io_type = "CLIP"


class String:
    io_type = "STRING"
    Output = _Output

    @dataclass
    class Input(_Widget):
        multiline: bool = False
        placeholder: str | None = None
        dynamic_prompts: bool | None = None


class Int:
    io_type = "INT"
    Output = _Output

    @dataclass
    class Input(_Widget):
        min: int | None = None
        max: int | None = None
        step: int | None = None


class Combo:
    io_type = "COMBO"
    Output = _Output

    @dataclass
    class Input(_Widget):
        options: list[str] = field(default_factory=list)


class Hidden:
    unique_id, prompt, extra_pnginfo = "UNIQUE_ID", "PROMPT", "EXTRA_PNGINFO"


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Any] = field(default_factory=list)
    outputs: list[_Output] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False

    def finalize(self) -> None:
        for index, output in enumerate(self.outputs):
            if output.id is None:
                output.id = f"_{index}_"

    def validate(self) -> None:
        ids = [one.id for one in (*self.inputs, *self.outputs)]
        assert len(set(ids)) == len(ids), ids


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.args, self.ui = args, ui


class _HiddenValues:
    prompt: Any = None
    extra_pnginfo: Any = None


class ComfyNode:
    hidden = _HiddenValues()

    @classmethod
    def define_schema(cls) -> Schema:
        raise NotImplementedError

    @classmethod
    def GET_SCHEMA(cls) -> Schema:  # noqa: N802 - ComfyUI's name
        schema = cls.define_schema()
        schema.finalize()
        schema.validate()
        return schema
