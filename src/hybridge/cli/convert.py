"""``hybridge convert``"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import typer

#: Prefix of our own errors on the child process's error stream.
_MARK = "hybridge convert: "


def convert(
    source: Path = typer.Argument(help="A .ckpt, .pt, .pth or .bin file.", exists=True, dir_okay=False),
    target: Path = typer.Argument(help="The .safetensors file to write."),
) -> None:
    """Turn pickled weights into safetensors, without running what is pickled."""
    from ..errors import OutOfMemory, RequestError
    from .console import screen

    if target.suffix.lower() != ".safetensors":
        raise RequestError("not a name for safetensors", saw=target.name, expected="FILE.safetensors")
    if target.exists():
        raise RequestError(f"{target} is there already", hint="another name, or remove it first")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    # A separate process: if the file exploits torch's reader, the memory contains nothing else.
    command = [sys.executable, "-c", "from hybridge.cli.convert import work; work()", str(source), str(part)]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
        if done.returncode == 0:
            part.replace(target)
            screen().print(f"{target}: {done.stdout.strip()} tensors, {target.stat().st_size} bytes")
            return
    finally:
        part.unlink(missing_ok=True)
    said = done.stderr.strip().splitlines()
    if done.returncode < 0 or any("MemoryError" in line for line in said[-1:]):
        raise OutOfMemory(
            f"there was no memory to convert {source}", expected=f"twice its {source.stat().st_size} bytes"
        )
    reason = said[-1] if said else f"status {done.returncode}"
    if not reason.startswith(_MARK):
        raise RequestError(f"{source} cannot be converted", saw=reason)
    raise RequestError(reason.removeprefix(_MARK))


def work() -> None:
    """Run the child process: read the first file argument, write the second, and print the number of tensors."""
    from ..errors import HybridgeError, RequestError
    from ..protocol.torch import load_tensors

    source, target = map(Path, sys.argv[1:])
    try:
        # In some checkpoints weights share memory, which safetensors does not allow.
        tensors = {name: tensor.contiguous().clone() for name, tensor in load_tensors(source).items()}
        if not tensors or "" in tensors:
            raise RequestError(f"{source} holds no weights by name", saw=f"{len(tensors)} tensors")
        from safetensors.torch import save_file

        save_file(tensors, target, {"format": "pt"})
    except HybridgeError as error:
        sys.exit(_MARK + " ".join(str(error).split()))
    sys.stdout.write(str(len(tensors)))
