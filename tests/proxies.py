"""nginx and Caddy as processes: whoever needs one that is not installed is skipped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Directories that Debian's nginx otherwise takes from the system.
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/log;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {block}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def replaced(block: str, *pairs: tuple[str, str]) -> str:
    """The block with each old text replaced, which it must have."""
    for old, new in pairs:
        assert old in block, f"no {old} in what is shown"
        block = block.replace(old, new)
    return block


@contextmanager
def proxy(name: str, block: str, port: int, folder: Path) -> Iterator[str]:
    """The address of a proxy with a block of configuration in which it listens on a port of 127.0.0.1."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed (apt install {'nginx-light' if name == 'nginx' else name})")
    file = folder / name
    if name == "nginx":
        file.write_text(_NGINX.format(folder=folder, block=block))
        command = ["nginx", "-p", str(folder), "-e", str(folder / "log"), "-c", str(file)]
    else:
        file.write_text("{\n admin off\n}\n" + block)
        command = ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]
    own = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=output, stderr=output)
        try:
            for _ in range(300):
                assert process.poll() is None, (folder / "output").read_text()
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)
