"""The nodes as ComfyUI sees them: inputs, outputs and descriptions; the work is in the other files."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io

from . import servers
from .check import checked
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
        pixels = _vae(profile, model, "decode", precision).decode(samples["samples"])
        return io.NodeOutput(pixels.flatten(0, 1) if pixels.ndim == 5 else pixels)


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


def _vae(profile: str, model: str, task: str, precision: str = PRECISIONS[0]) -> RemoteVAE:
    server = servers.server_of(profile)
    return RemoteVAE(server, server.model(model, task), precision)


class HybridgeExtension(ComfyExtension):
    """All nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes, in the order of the menu."""
        return [HybridgeServer, HybridgeVAE, HybridgeDecode, HybridgeEncode]


async def comfy_entrypoint() -> HybridgeExtension:
    """Return the extension; ComfyUI calls this."""
    return HybridgeExtension()
