"""The nodes as ComfyUI sees them: inputs, outputs and descriptions; the work is in the other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import folder_paths
from comfy_api.latest import ComfyExtension, io

from . import servers
from .check import checked
from .clip import RemoteCLIP
from .latents import FOLDER, fingerprint_of, load_latents, names_of, save_latents, tensor_of
from .messages import NodeError
from .text import encode_text
from .vae import PRECISIONS, RemoteVAE


def _schema(node_id: str, display_name: str, description: str, **parts: Any) -> io.Schema:
    about = {"display_name": display_name, "description": description, "category": "hybridge"}
    return io.Schema(node_id=node_id, **about, **parts)


# ------------------------------------------------------------------------------------------------ inputs

_PROFILE = (
    "Name of a profile: a server's address and key, which stay out of the workflow. Empty for the only profile."
)


def _profile() -> Any:
    return io.String.Input("profile", default="", tooltip=_PROFILE)


def _model(what: str) -> list[Any]:
    """Return the inputs that name a server and one of its models."""
    tooltip = f"The server's name for the {what}. Empty for the only one."
    return [_profile(), io.String.Input("model", default="", tooltip=tooltip)]


def _decoder() -> list[Any]:
    tooltip = "How pixels come back: as 8-bit levels, or as floats, which take four times as long on the way."
    precision = io.Combo.Input("precision", options=list(PRECISIONS), default=PRECISIONS[0], tooltip=tooltip)
    return [*_model("VAE"), precision]


# ------------------------------------------------------------------------------------------------ with a server


class _ServerNode(io.ComfyNode):
    """A node that has a server do something: checked before it runs, and run again when the model has changed.

    Attributes:
        task: What the server is asked for: ``decode``, ``encode`` or ``prompt``.
    """

    task: ClassVar[str] = ""

    @classmethod
    def validate_inputs(cls, profile: str = "") -> bool | str:
        """Refuse an address in the place of a profile's name before anything runs."""
        return servers.check_profile(profile or "") or True

    @classmethod
    def fingerprint_inputs(cls, profile: str = "", model: str = "", **_: Any) -> Any:
        return servers.fingerprint(profile, model, cls.task)

    @classmethod
    def vae(cls, profile: str, model: str, precision: str = PRECISIONS[0]) -> RemoteVAE:
        """Return the server's VAE that has this node's task."""
        server = servers.server_of(profile)
        return RemoteVAE(server, server.model(model, cls.task), precision)


class HybridgeServer(_ServerNode):
    """Tries a server: what it has, and whether it decodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "HybridgeServer",
            "Hybridge Server",
            "Asks a server what it has and lets it decode once. Gives the profile to other nodes.",
            inputs=[_profile()],
            outputs=[io.String.Output("used_profile", display_name="profile"), io.String.Output("report")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        """Run each time: the answer of a moment ago says nothing about now."""
        return float("nan")

    @classmethod
    def execute(cls, profile: str) -> io.NodeOutput:
        server = servers.server_of(profile)
        report = checked(server)
        return io.NodeOutput(server.profile, report, ui={"text": (report,)})


class HybridgeVAE(_ServerNode):
    """A server's VAE for all nodes that take one."""

    task = "decode"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "HybridgeVAE",
            "Hybridge Remote VAE",
            "A VAE that runs on a server, for every node with a VAE socket. It takes no memory here.",
            inputs=_decoder(),
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, profile: str, model: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(cls.vae(profile, model, precision))


class HybridgeDecode(_ServerNode):
    """Latents to pixels, without a VAE object."""

    task = "decode"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "HybridgeDecode",
            "Hybridge Decode",
            "Decodes latents on a server.",
            inputs=[io.Latent.Input("samples"), *_decoder()],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], profile: str, model: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(_pictures(cls.vae(profile, model, precision).decode(tensor_of(samples))))


class HybridgePreviewDecode(_ServerNode):
    """Latents to pixels, with a picture above the node before they are there."""

    task = "decode"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "HybridgePreviewDecode",
            "Hybridge Preview, then Decode",
            "Decodes latents on a server, and shows an approximation of the first picture before that.",
            inputs=[io.Latent.Input("samples"), *_decoder()],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples: dict[str, Any], profile: str, model: str, precision: str) -> io.NodeOutput:
        return io.NodeOutput(_pictures(cls.vae(profile, model, precision).decode_with_preview(tensor_of(samples))))


class HybridgeEncode(_ServerNode):
    """Pixels to latents, without a VAE object."""

    task = "encode"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "HybridgeEncode",
            "Hybridge Encode",
            "Encodes pictures, or for a video model the frames of one video, on a server.",
            inputs=[io.Image.Input("pixels"), *_model("VAE")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, pixels: Any, profile: str, model: str) -> io.NodeOutput:
        return io.NodeOutput({"samples": cls.vae(profile, model).encode_tiled(pixels)})


class HybridgeClip(_ServerNode):
    """A server's text encoders for nodes that take a CLIP."""

    task = "prompt"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "HybridgeClip",
            "Hybridge Remote CLIP",
            "Text encoders that run on a server, for nodes with a CLIP socket that encode text.",
            inputs=_model("text encoders"),
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, profile: str, model: str) -> io.NodeOutput:
        server = servers.server_of(profile)
        return io.NodeOutput(RemoteCLIP(server, server.model(model, cls.task)))


class HybridgeText(_ServerNode):
    """Text to a CONDITIONING, without a CLIP."""

    task = "prompt"

    @classmethod
    def define_schema(cls) -> io.Schema:
        second = "What the second text encoder of SDXL, SD3 or FLUX.1 reads. Empty for the same text."
        layer = "Of SD 1 and SDXL, as CLIP Set Last Layer has it. 0 for the model's own."
        return _schema(
            "HybridgeText",
            "Hybridge Text Encode",
            "Encodes text on a server as ComfyUI does: weights as in (word:1.3), long texts in chunks.",
            inputs=[
                *_model("text encoders"),
                io.String.Input("text", multiline=True, dynamic_prompts=True),
                io.String.Input("second_text", optional=True, multiline=True, default="", tooltip=second),
                io.Int.Input("clip_layer", optional=True, default=0, min=-24, max=0, tooltip=layer),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(
        cls, profile: str, model: str, text: str, second_text: str = "", clip_layer: int = 0
    ) -> io.NodeOutput:
        server = servers.server_of(profile)
        texts = {"prompt": text} | ({"prompt_2": second_text} if second_text else {})
        facts = server.model(model, cls.task)
        return io.NodeOutput(encode_text(server, facts, texts, clip_layer=clip_layer or None))


# ------------------------------------------------------------------------------------------------ files


class _FileNode(_ServerNode):
    """A node whose latents may be of a model that a server has; without a name, no server is asked."""

    task = "decode"

    @classmethod
    def fingerprint_inputs(cls, profile: str = "", model: str = "", **_: Any) -> Any:
        return servers.fingerprint(profile, model, cls.task) if profile or model else ""

    @classmethod
    def named(cls, profile: str, model: str) -> RemoteVAE | None:
        """Return the server's VAE if a widget names it."""
        return cls.vae(profile, model) if profile or model else None


def _model_of_file(what: str) -> list[Any]:
    about = f"The server's name for the model {what}: needed for LTX-2 and Cosmos, whose latents look like others."
    profile = io.String.Input("profile", optional=True, default="", tooltip=_PROFILE)
    return [profile, io.String.Input("model", optional=True, default="", tooltip=about)]


class HybridgeSaveLatents(_FileNode):
    """A LATENT to a file that says what it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "HybridgeSaveLatents",
            "Hybridge Save Latents",
            "Saves latents for `hybridge decode` and for Hybridge Load Latents, without the workflow.",
            inputs=[
                io.Latent.Input("samples"),
                io.String.Input("filename_prefix", default=f"{FOLDER}/hybridge"),
                *_model_of_file("that decodes these"),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, samples: dict[str, Any], filename_prefix: str, profile: str = "", model: str = ""
    ) -> io.NodeOutput:
        vae = cls.named(profile, model)
        output = folder_paths.get_output_directory()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output)
        file = f"{name}_{counter:05}_.safetensors"
        known = () if vae is None else (vae.model, vae.conversion)
        save_latents(samples, Path(folder) / file, *known)
        return io.NodeOutput(ui={"latents": [{"filename": file, "subfolder": subfolder, "type": "output"}]})


class HybridgeLoadLatents(_FileNode):
    """A file of latents to a LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        about = "Of latents whose file does not say it: `vae` for unscaled ones."
        return _schema(
            "HybridgeLoadLatents",
            "Hybridge Load Latents",
            "Loads latents of ComfyUI, `hybridge encode` or a trainer's cache from the input folder.",
            inputs=[
                io.Combo.Input("file", options=_files()),
                io.Combo.Input("space", options=list(_SPACES), default=_SPACES[0], tooltip=about),
                *_model_of_file("that made them"),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = "", profile: str = "", model: str = "", **_: Any) -> str:
        return fingerprint_of(_path_of(file)) + str(super().fingerprint_inputs(profile, model))

    @classmethod
    def execute(cls, file: str, space: str, profile: str = "", model: str = "") -> io.NodeOutput:
        vae = cls.named(profile, model)
        conversion = None if vae is None else vae.conversion
        return io.NodeOutput(load_latents(_path_of(file), assumes_vae_space=space == "vae", conversion=conversion))


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


# ------------------------------------------------------------------------------------------------ the pack


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
            HybridgeClip,
            HybridgeText,
            HybridgeSaveLatents,
            HybridgeLoadLatents,
        ]


async def comfy_entrypoint() -> HybridgeExtension:
    """Return the extension; ComfyUI calls this."""
    return HybridgeExtension()
