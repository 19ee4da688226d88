"""Runs prompts with the pack's own nodes in a real ComfyUI: its loader of packs, its checks, its executor.

Started by test_real_comfyui.py; the profile ``desktop`` has a server with ``vae``, ``wan`` and ``text``.  Whatever
ComfyUI sends, stores or writes is searched for the key and the address.
"""

# ruff: noqa: I001 - ComfyUI is prepared before it is imported

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from real_host import PACK, STUBS, compare

import av
import comfy.model_management
import comfy.utils
import execution
import folder_paths
import nodes
import torch
from comfy_api.latest import io
from PIL import Image, ImageChops
from safetensors import safe_open

OUTPUT = STUBS / "output"

#: The stock nodes that the prompts use, by ComfyUI's files of them.
EXTRAS = ("nodes_hunyuan.py", "nodes_video.py", "nodes_clip_sdxl.py")


class Messages:
    """Stands for ComfyUI's server, to which the executor sends what browsers are to know."""

    client_id = "browser"
    last_node_id = None
    last_prompt_id = None
    sockets_metadata: dict[str, Any] = {}  # noqa: RUF012 - of the class, as there

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send_sync(self, event: Any, data: Any, sid: Any = None) -> None:
        self.sent.append([event, data])


class Held(io.ComfyNode):
    """Latents that take a second to decode."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="Held", category="test", inputs=[], outputs=[io.Latent.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput({"samples": torch.randn(1, 4, 256, 256)})


def load_nodes() -> dict[str, Any]:
    """Loads the pack as ComfyUI does at its start, and returns its nodes."""
    before = set(nodes.NODE_CLASS_MAPPINGS)
    extras = Path(nodes.__file__).parent / "comfy_extras"

    async def load() -> None:
        for name in EXTRAS:
            assert await nodes.load_custom_node(str(extras / name), module_parent="comfy_extras"), name
        known = set(nodes.NODE_CLASS_MAPPINGS)
        assert await nodes.load_custom_node(str(PACK))
        assert len(set(nodes.NODE_CLASS_MAPPINGS) - known) == 9

    asyncio.run(load())
    Held.GET_SCHEMA()
    nodes.NODE_CLASS_MAPPINGS["Held"] = Held
    found = {name: kind for name, kind in nodes.NODE_CLASS_MAPPINGS.items() if name not in before}
    return {name: kind for name, kind in found.items() if name.startswith("Hybridge")}


class Runner:
    """ComfyUI's executor, and everything that it said."""

    def __init__(self) -> None:
        self.messages = Messages()
        self._executor = execution.PromptExecutor(self.messages, *_cache())
        self._count = 0

    def check(self, prompt: dict[str, Any]) -> tuple[bool, Any, list[str], Any]:
        """What ComfyUI finds before it takes a prompt: whether it is right, the error, its outputs, each node's."""
        return asyncio.run(execution.validate_prompt("check", prompt, None))

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Runs a prompt; returns what its last nodes show in the browser, and all messages by their kind."""
        is_right, error, outputs, of_nodes = self.check(prompt)
        assert is_right, (error, of_nodes)
        self._count += 1
        extra = {"client_id": "browser", "extra_pnginfo": {"workflow": prompt}}
        fresh = json.loads(json.dumps(prompt))  # the executor writes fingerprints into it
        self._executor.execute(fresh, str(self._count), extra, list(outputs))
        status = dict(self._executor.status_messages)
        shown = self._executor.history_result["outputs"] if self._executor.success else {}
        return {"shown": shown, "status": status}

    def stored(self) -> str:
        return json.dumps([self.messages.sent, self._executor.history_result], default=str)


def _cache() -> tuple[Any, ...]:
    kind = getattr(execution, "CacheType", None)
    return () if kind is None else (kind.CLASSIC, {"lru": 0, "ram": 0.0})


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def desktop(model: str, **others: Any) -> dict[str, Any]:
    return {"profile": "desktop", "model": model, **others}


def describe(told: dict[str, Any], kinds: dict[str, Any]) -> None:
    """What browsers ask about nodes."""
    for name, kind in kinds.items():
        described = json.loads(json.dumps(kind.GET_NODE_INFO_V1()))
        assert described["name"] == name
        schema = kind.GET_SCHEMA()
        schema.validate()
    told["nodes"] = sorted(kinds)


def picture(told: dict[str, Any], runner: Runner) -> None:
    """Text, pictures and files, by stock nodes with the remote objects, and by the plain nodes."""
    prompt = {
        "1": node("HybridgeServer", profile="desktop"),
        "2": node("HybridgeVAE", profile=["1", 0], model="vae", precision="float"),
        "3": node("EmptyLatentImage", width=64, height=96, batch_size=2),
        "4": node("VAEDecode", samples=["3", 0], vae=["2", 0]),
        "5": node("SaveImage", images=["4", 0], filename_prefix="stock"),
        "6": node("HybridgeDecode", samples=["3", 0], **desktop("vae", precision="8-bit")),
        "7": node("SaveImage", images=["6", 0], filename_prefix="plain"),
        "8": node("HybridgePreviewDecode", samples=["3", 0], **desktop("vae", precision="8-bit")),
        "9": node("PreviewImage", images=["8", 0]),
        "10": node("HybridgeEncode", pixels=["4", 0], **desktop("vae")),
        "11": node("HybridgeSaveLatents", samples=["10", 0], filename_prefix="latents/made"),
        "12": node("VAEDecodeTiled", samples=["10", 0], vae=["2", 0], tile_size=512, overlap=64, temporal_size=64,
                   temporal_overlap=8),
        "13": node("PreviewImage", images=["12", 0]),
    }  # fmt: skip
    done = runner.run(prompt)
    assert "execution_error" not in done["status"], done["status"]
    assert "decoded a picture of" in done["shown"]["1"]["text"][0]
    stock, plain = (Image.open(OUTPUT / f"{name}_00001_.png") for name in ("stock", "plain"))
    assert stock.size == plain.size == (64, 96)
    apart = ImageChops.difference(stock, plain).getextrema()
    assert max(most for _, most in apart) <= 1
    assert json.loads(stock.text["prompt"])["6"]["inputs"]["profile"] == "desktop"
    with safe_open(OUTPUT / "latents" / "made_00001_.safetensors", "pt") as file:
        assert file.get_tensor("latents").shape == (2, 4, 12, 8)
        assert file.metadata() == {"space": "vae"}
    again = runner.run(prompt)
    cached = set(again["status"]["execution_cached"]["nodes"])
    # The server is tried each time, and what hangs on it runs again; what names the profile itself does not.
    assert {"3", "6", "7", "8", "9"} <= cached
    assert "1" not in cached
    told["picture"] = f"{len(cached)} of {len(prompt)} nodes cached when run again"


def text(told: dict[str, Any], runner: Runner) -> None:
    """Conditionings of *CLIP Text Encode* with the remote CLIP, of the plain node, and with another layer."""
    found: list[Any] = []

    class Look(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            inputs = [io.Conditioning.Input(name) for name in ("stock", "plain", "layer")]
            return io.Schema(node_id="Look", category="test", inputs=inputs, outputs=[], is_output_node=True)

        @classmethod
        def execute(cls, **conditionings: Any) -> io.NodeOutput:
            found.append(conditionings)
            return io.NodeOutput(ui={"seen": ["yes"]})

    Look.GET_SCHEMA()
    nodes.NODE_CLASS_MAPPINGS["Look"] = Look
    words = "a (cat:1.3) in rain, " * 20
    done = runner.run(
        {
            "1": node("HybridgeClip", **desktop("text")),
            "2": node("CLIPTextEncode", clip=["1", 0], text=words),
            "3": node("HybridgeText", text=words, **desktop("text")),
            "4": node("CLIPSetLastLayer", clip=["1", 0], stop_at_clip_layer=-2),
            "5": node("CLIPTextEncode", clip=["4", 0], text=words),
            "6": node("Look", stock=["2", 0], plain=["3", 0], layer=["5", 0]),
        }
    )
    assert "execution_error" not in done["status"], done["status"]
    (seen,) = found
    compare(told, "CLIPTextEncode", seen["stock"][0][0], seen["plain"][0][0], 0)
    assert seen["stock"][0][0].shape[1] > 77
    assert not torch.equal(seen["layer"][0][0], seen["stock"][0][0])


def video(told: dict[str, Any], runner: Runner) -> None:
    """A film of Wan's, decoded, saved, and encoded again."""
    prompt = {
        "1": node("HybridgeVAE", **desktop("wan", precision="8-bit")),
        "2": node("EmptyHunyuanLatentVideo", width=64, height=48, length=9, batch_size=1),
        "3": node("VAEDecode", samples=["2", 0], vae=["1", 0]),
        "4": node("CreateVideo", images=["3", 0], fps=8.0),
        "5": node("SaveVideo", video=["4", 0], filename_prefix="film", format="auto", codec="auto"),
        "6": node("VAEEncode", pixels=["3", 0], vae=["1", 0]),
        "7": node("HybridgeSaveLatents", samples=["6", 0], filename_prefix="latents/film"),
        "8": node("HybridgeDecode", samples=["6", 0], **desktop("wan", precision="8-bit")),
        "9": node("SaveImage", images=["8", 0], filename_prefix="frames"),
    }
    done = runner.run(prompt)
    assert "execution_error" not in done["status"], done["status"]
    (film,) = OUTPUT.glob("film_*.mp4")
    with av.open(film) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert json.loads(container.metadata["prompt"])["1"]["inputs"]["profile"] == "desktop"
    assert (len(frames), frames[0].shape) == (9, (48, 64, 3))
    with safe_open(OUTPUT / "latents" / "film_00001_.safetensors", "pt") as file:
        assert file.get_tensor("latents").shape == (1, 16, 3, 6, 8)
    assert len(list(OUTPUT.glob("frames_*.png"))) == 9
    told["video"] = f"{len(frames)} frames in {film.suffix}"


def interrupt(told: dict[str, Any], runner: Runner) -> None:
    """Interrupted in the middle of a decode, by the executor's own way."""
    times: list[float] = []
    shown = len(runner.messages.sent)

    def press() -> None:
        while not any(
            event == "executing" and data.get("node") == "2" for event, data in runner.messages.sent[shown:]
        ):
            time.sleep(0.01)
        time.sleep(0.3)
        times.append(time.perf_counter())
        nodes.interrupt_processing()

    thread = threading.Thread(target=press)
    thread.start()
    done = runner.run(
        {
            "1": node("Held"),
            "2": node("HybridgeDecode", samples=["1", 0], **desktop("vae", precision="float")),
            "3": node("PreviewImage", images=["2", 0]),
        }
    )
    told["seconds to the interruption"] = time.perf_counter() - times[0]
    thread.join()
    assert done["status"]["execution_interrupted"]["node_id"] == "2"
    assert told["seconds to the interruption"] < 1


def refusals(told: dict[str, Any], runner: Runner) -> None:
    """What is wrong is a sentence: before a prompt runs, or as the error of its node."""
    address = f"http://user:{os.environ['KEY']}@{os.environ['ADDRESS']}"
    pasted = {"1": node("HybridgeServer", profile=address)}
    is_right, _, _, of_nodes = runner.check(pasted)
    assert not is_right
    reasons = [error["details"] for error in of_nodes["1"]["errors"]]
    assert any("takes the name of a profile" in reason for reason in reasons), reasons
    assert not any(os.environ["KEY"] in reason for reason in reasons)
    unknown = {
        "1": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "2": node("HybridgeDecode", samples=["1", 0], **desktop("another", precision="8-bit")),
        "3": node("PreviewImage", images=["2", 0]),
    }
    error = runner.run(unknown)["status"]["execution_error"]
    assert "has no model 'another'" in error["exception_message"]
    told["refused"] = error["exception_message"].strip()


def secrets(told: dict[str, Any], runner: Runner) -> None:
    """Neither the key nor the address is in a message, in the history, or in a file."""
    texts = {"messages": runner.stored().encode()}
    texts |= {path.name: path.read_bytes() for path in STUBS.rglob("*") if path.is_file()}
    told["searched"] = len(texts)
    for name in ("ADDRESS", "KEY"):
        assert not [where for where, text in texts.items() if os.environ[name].encode() in text], name


def main() -> None:
    torch.manual_seed(0)
    for name in ("input", "output", "temp"):
        (STUBS / name).mkdir()
        getattr(folder_paths, f"set_{name}_directory")(str(STUBS / name))
    previews: list[Any] = []

    def hook(value: int, total: int, preview: Any, **_: Any) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        previews.append(preview)

    comfy.utils.set_progress_bar_global_hook(hook)
    told: dict[str, Any] = {}
    kinds, runner = load_nodes(), Runner()
    for step in (picture, text, video, interrupt, refusals, secrets):
        step(told, runner)
    describe(told, kinds)
    told["previews"] = len([preview for preview in previews if preview is not None])
    sys.modules[f"{kinds['HybridgeVAE'].__module__.rpartition('.')[0]}.servers"].close()
    print(json.dumps(told))  # noqa: T201 - for the test


if __name__ == "__main__":
    main()
