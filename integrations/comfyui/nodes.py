"""The nodes as ComfyUI sees them: inputs, outputs and descriptions; the work is in the other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import ComfyExtension, io

from . import servers
from .check import checked
from .latents import FOLDER, fingerprint_of, load_latents, names_of, save_latents
from .messages import NodeError
from .text import encode_text
from .vae import PRECISIONS, RemoteVAE

_CATEGORY = "hybridge"

_PROFILE = (
    "Name of a profile: a server's address and key, which stay out of the workflow. Empty for the only profile."
)


def _profile() -> Any:
    return io.String.Input("profile", default="", tooltip=_PROFILE)


def _model(what: str) -> Any:
    tooltip = f"The server's name for the {what}. Empty for the only one."
    return io.String.Input("model", default="", tooltip=tooltip)


def _precision() -> Any:
    tooltip = "How pixels come back: as 8-bit levels, or as floats, which take four times as long on the way."
    return io.Combo.Input("precision", options=list(PRECISIONS), default=PRECISIONS[0], tooltip=tooltip)


class _Node(io.ComfyNode):
    """What all nodes with a server have in common."""

    @classmethod
    def validate_inputs(cls, profile: str = "") -> bool | str:
        """Refuse an address in the place of a profile's name before anything runs."""
        return servers.check_profile(profile or "") or True


class HybridgeServer(_Node):
    """Tries a server: what it has, and whether it decodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HybridgeServer",
            display_name="Hybridge Server",
            category=_CATEGORY,
            description="Asks a server what it has and lets it decode once. Gives the profile to other nodes.",
            inputs=[_profile()],
            outputs=[io.String.Output("used_profile", display_name="profile"), io.String.Output("report")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str = "") -> float:
        """Run each time: the answer of a moment ago says nothing about now."""
        return float("nan")

    @classmethod
    def execute(cls, profile: str) -> io.NodeOutput:
        server = servers.server_of(profile)
        report = checked(server)
        return io.NodeOutput(server.profile, report, ui={"text": (report,)})


class HybridgeVAE(_Node):
    """A server's VAE for all nodes that take one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HybridgeVAE",
            display_name="Hybridge Remote VAE",
            category=_CATEGORY,
            description="A VAE that runs on a server, for every node with a VAE socket. It takes no memory here.",
            inputs=[_profile(), _model("VAE"), _precision()],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str = "", model: str = "", precision: str = "") -> str:
        return servers.fingerprint(profile, model, "decode")

    @classmethod
    def execute(cls, profile: str, model: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(_vae(profile, model, "decode", precision))


class HybridgeDecode(_Node):
    """Latents to pixels, without a VAE object."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HybridgeDecode",
            display_name="Hybridge Decode",
            category=_CATEGORY,
            description="Decodes latents on a server.",
            inputs=[io.Latent.Input("samples"), _profile(), _model("VAE"), _precision()],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str = "", model: str = "", **_: Any) -> str:
        return servers.fingerprint(profile, model, "decode")

    @classmethod
    def execute(cls, samples: dict[str, Any], profile: str, model: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(_pictures(_vae(profile, model, "decode", precision).decode(samples["samples"])))


class HybridgeEncode(_Node):
    """Pixels to latents, without a VAE object."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HybridgeEncode",
            display_name="Hybridge Encode",
            category=_CATEGORY,
            description="Encodes pictures, or for a video model the frames of one video, on a server.",
            inputs=[io.Image.Input("pixels"), _profile(), _model("VAE")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str = "", model: str = "", **_: Any) -> str:
        return servers.fingerprint(profile, model, "encode")

    @classmethod
    def execute(cls, pixels: Any, profile: str, model: str) -> io.NodeOutput:
        return io.NodeOutput({"samples": _vae(profile, model, "encode").encode_tiled(pixels)})


class HybridgePreviewDecode(_Node):
    """Latents to pixels, with a picture above the node before they are there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HybridgePreviewDecode",
            display_name="Hybridge Preview, then Decode",
            category=_CATEGORY,
            description="Decodes latents on a server, and shows an approximation of the first picture before that.",
            inputs=[io.Latent.Input("samples"), _profile(), _model("VAE"), _precision()],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str = "", model: str = "", **_: Any) -> str:
        return servers.fingerprint(profile, model, "decode")

    @classmethod
    def execute(cls, samples: dict[str, Any], profile: str, model: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(
            _pictures(_vae(profile, model, "decode", precision).decode_with_preview(samples["samples"]))
        )


class HybridgeText(_Node):
    """Text to a CONDITIONING, without a CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HybridgeText",
            display_name="Hybridge Text Encode",
            category=_CATEGORY,
            description="Encodes text on a server as ComfyUI does: weights as in (word:1.3), long texts in chunks.",
            inputs=[
                _profile(),
                _model("text encoders"),
                io.String.Input("text", multiline=True, dynamic_prompts=True),
                io.String.Input(
                    "second_text",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="What the second text encoder of SDXL, SD3 or FLUX.1 reads. Empty for the same text.",
                ),
                io.Int.Input(
                    "clip_layer",
                    optional=True,
                    default=0,
                    min=-24,
                    max=0,
                    tooltip="Of SD 1 and SDXL, as CLIP Set Last Layer has it. 0 for the model's own.",
                ),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, profile: str = "", model: str = "", **_: Any) -> str:
        return servers.fingerprint(profile, model, "prompt")

    @classmethod
    def execute(
        cls, profile: str, model: str, text: str, second_text: str = "", clip_layer: int = 0
    ) -> io.NodeOutput:
        server = servers.server_of(profile)
        facts = server.model(model, "prompt")
        return io.NodeOutput(encode_text(server, facts, text, second_text=second_text, clip_layer=clip_layer))


class HybridgeSaveLatents(io.ComfyNode):
    """A LATENT to a file that says what it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HybridgeSaveLatents",
            display_name="Hybridge Save Latents",
            category=_CATEGORY,
            description="Saves latents for `hybridge decode` and for Hybridge Load Latents, without the workflow.",
            inputs=[io.Latent.Input("samples"), io.String.Input("filename_prefix", default=f"{FOLDER}/hybridge")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], filename_prefix: str) -> io.NodeOutput:
        output = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output)
        file = f"{name}_{counter:05}_.safetensors"
        save_latents(samples, Path(folder) / file)
        return io.NodeOutput(ui={"latents": [{"filename": file, "subfolder": subfolder, "type": "output"}]})


class HybridgeLoadLatents(io.ComfyNode):
    """A file of latents to a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HybridgeLoadLatents",
            display_name="Hybridge Load Latents",
            category=_CATEGORY,
            description="Loads latents of ComfyUI, `hybridge encode` or a trainer's cache from the input folder.",
            inputs=[
                io.Combo.Input("file", options=_files()),
                io.Combo.Input(
                    "space",
                    options=list(_SPACES),
                    default=_SPACES[0],
                    tooltip="Of latents whose file does not say it: `vae` for unscaled ones.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = "", **_: Any) -> str:
        return fingerprint_of(_path_of(file))

    @classmethod
    def execute(cls, file: str, space: str) -> io.NodeOutput:
        return io.NodeOutput(load_latents(_path_of(file), assumes_vae_space=space == "vae"))


_SPACES = ("as the file says", "vae")


def _files() -> list[str]:
    return names_of(Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory()))


def _path_of(file: str) -> Path:
    if file not in _files():
        raise NodeError(f"There is no file {file!r} of latents in ComfyUI's input folder or below its output.")
    return Path(folder_paths.get_annotated_filepath(file))


def _pictures(pixels: Any) -> Any:
    """Return videos (B, F, H, W, 3) as the batch of frames that an IMAGE is."""
    return pixels.flatten(0, 1) if pixels.ndim == 5 else pixels


def _vae(profile: str, model: str, task: str, precision: str = PRECISIONS[0]) -> RemoteVAE:
    server = servers.server_of(profile)
    return RemoteVAE(server, server.model(model, task), precision)


class HybridgeExtension(ComfyExtension):
    """All nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes, in the order of the menu."""
        return [
            HybridgeServer,
            HybridgeVAE,
            HybridgeDecode,
            HybridgeEncode,
            HybridgePreviewDecode,
            HybridgeText,
            HybridgeSaveLatents,
            HybridgeLoadLatents,
        ]


async def comfy_entrypoint() -> HybridgeExtension:
    """Return the extension; ComfyUI calls this."""
    return HybridgeExtension()
