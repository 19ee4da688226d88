"""A real ComfyUI in a process of its own, and its HTTP API."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

PACK = Path(__file__).parents[1] / "integrations" / "comfyui"
_SCRIPT = Path(__file__).parent / "integrations" / "comfyui" / "real_server.py"
_START_S, _PROMPT_S = 120, 240

#: Kinds of inputs that are widgets; a list of choices is one, too.
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


class ComfyUI:
    """What a browser does with ComfyUI.

    Attributes:
        folder: ComfyUI's base folder.
    """

    def __init__(self, folder: Path, http: httpx.Client, process: subprocess.Popen[bytes]) -> None:
        self.folder, self._http, self._process = folder, http, process

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self._http.get(path, params=query).raise_for_status()

    def refused(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The errors of a prompt that is not taken, by node."""
        reply = self._http.post("/prompt", json={"prompt": prompt})
        assert reply.status_code == 400, reply.text
        return reply.json()["node_errors"]

    def begin(self, prompt: dict[str, Any]) -> str:
        """Puts a prompt into the queue; returns its id."""
        body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": prompt}}}
        reply = self._http.post("/prompt", json=body)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["prompt_id"])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)

    def interrupt(self) -> None:
        self._http.post("/interrupt").raise_for_status()

    def end(self, prompt_id: str) -> dict[str, Any]:
        """Waits for a prompt's entry in the history."""
        until = time.monotonic() + _PROMPT_S
        while time.monotonic() < until:
            history = self.get(f"/history/{prompt_id}").json()
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.05)
        raise AssertionError("the prompt takes too long")

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Runs a prompt, and returns what its last nodes show."""
        entry = self.end(self.begin(prompt))
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry["outputs"]

    def failure(self, prompt: dict[str, Any]) -> str:
        """The sentence of the node that fails."""
        messages = dict(self.end(self.begin(prompt))["status"]["messages"])
        return str(messages["execution_error"]["exception_message"]).strip()

    def as_prompt(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """A workflow as ComfyUI's page sends it: widgets by their names."""
        sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        return {str(node["id"]): self._as_sent(node, sources) for node in workflow["nodes"]}

    def _as_sent(self, node: dict[str, Any], sources: dict[int, Any]) -> dict[str, Any]:
        given = self.get(f"/object_info/{node['type']}").json()[node["type"]]["input"]
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for name, (kind, *options) in {**given.get("required", {}), **given.get("optional", {})}.items():
            if isinstance(kind, list) or kind in _WIDGETS:
                inputs[name] = next(values)
                more = options[0] if options else {}
                if more.get("control_after_generate") or more.get("image_upload"):
                    next(values)
        inputs |= {one["name"]: sources[one["link"]] for one in node["inputs"] if one["link"] is not None}
        return {"class_type": node["type"], "inputs": inputs}


@contextmanager
def running_comfyui(folder: Path, env: dict[str, str]) -> Iterator[ComfyUI]:
    """Starts ComfyUI with the pack in its ``custom_nodes``."""
    for name in ("custom_nodes", "input", "output", "user"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "custom_nodes" / "hybridge-remote").symlink_to(PACK)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        Path(__file__).parent / "integrations" / "comfyui" / "real_server.py",
        folder,
        str(port),
    ]
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=file, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            _wait(process, http, log)
            yield ComfyUI(folder, http, process)
    finally:
        process.terminate()
        process.wait(20)


def _wait(process: subprocess.Popen[bytes], http: httpx.Client, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            http.get("/system_stats").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace")[-3000:])
