"""The import rules of docs/structure.md, read from the source with ast; and what importing loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "hybridge"

#: What each room may import from hybridge, besides itself, ``errors`` and ``units``.
ALLOWED = {
    "errors": set(),
    "units": {"errors"},
    "protocol": set(),
    "models": set(),
    "scenes": set(),
    "engine": {"models"},
    "client": {"protocol", "models"},
    "server": {"protocol", "models"},
    "scaleout": {"protocol", "models", "engine", "server"},
    "lab": {"engine", "client", "models", "scenes"},
    "cli": {"protocol", "models", "engine", "client", "server", "scaleout", "lab", "scenes"},
    "__main__": {"cli"},
}

#: The files of the server that may know the engine: one for each kind of model, and the backend that has them.
SERVER_TO_ENGINE = {path.relative_to(SOURCE) for path in SOURCE.glob("server/local_*.py")}

#: What the folders of a room may import of each other.  Files that lie beside the folders may import any of them.
LAYERS = {
    "engine": {
        "tiny": set(),
        "program": {"tiny"},
        "machine": set(),
        "planning": {"program"},
        "memory": {"machine", "planning"},
        "kernels": {"machine", "planning"},
        "execution": {"kernels", "memory", "planning", "program"},
        "text": {"machine", "memory"},
    },
    "server": {
        "scheduling": set(),
        "middleware": set(),
        "async_jobs": {"middleware", "scheduling"},
        "page": set(),
        "process": {"middleware", "scheduling"},
        "http": {"async_jobs", "middleware", "process", "scheduling"},
    },
    "lab": {
        "harness": set(),
        "techniques": {"harness"},
        "studies": {"harness", "techniques"},
        "vae_bench": {"harness"},
        "serve_bench": {"harness", "vae_bench"},
        "estimator": {"harness", "studies", "techniques"},
        "advisor": {"estimator", "harness", "techniques"},
        "simulator": {"harness", "serve_bench"},
        "report": {"harness", "serve_bench", "studies", "techniques", "vae_bench"},
    },
}

#: The files of the room ``scaleout`` that import Ray.
RAY = {"cluster", "router"}

#: Where torch may be imported, be it inside a function: files, and folders with all that is in them.
KNOWS_TORCH = {
    Path("protocol/torch.py"),
    Path("client/call_types.py"),
    Path("client/conversion.py"),
    Path("client/compat.py"),
    Path("client/fallback.py"),
    Path("client/pipelines.py"),
    Path("client/remote_vae.py"),
    Path("client/vae_stand_in.py"),
    Path("cli/demo.py"),
    Path("cli/demo_picture.py"),
    Path("cli/plan.py"),
    Path("lab/advisor"),
    Path("lab/estimator/live_tensors.py"),
    Path("lab/estimator/parts.py"),
    Path("lab/estimator/phases.py"),
    Path("lab/harness/environment.py"),
    Path("lab/harness/measure.py"),
    Path("lab/harness/memory.py"),
    Path("lab/serve_bench/served_model.py"),
    Path("lab/studies/bench.py"),
    Path("lab/studies/pictures.py"),
    Path("lab/studies/pipeline.py"),
    Path("lab/studies/tiny_pipeline.py"),
    Path("lab/studies/worker.py"),
    Path("lab/techniques"),
    Path("lab/vae_bench/rivals.py"),
    Path("lab/vae_bench/roofline.py"),
    Path("lab/vae_bench/subject.py"),
    Path("lab/vae_bench/worker.py"),
}

#: Parts of other programs import the client alone, except for these.
INTEGRATIONS = SOURCE.parent.parent / "integrations"
FOR_INTEGRATIONS = {"comfyui": {"client", "protocol"}, "huggingface": {"protocol", "models", "engine"}}


def files() -> list[Path]:
    return [path.relative_to(SOURCE) for path in sorted(SOURCE.rglob("*.py"))]


@cache
def imports(path: Path) -> set[str]:
    """Absolute names of every module that a file imports, anywhere in it, and of what it imports from them."""
    package = ["hybridge", *path.parent.parts]
    found = set()
    for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            found.add(".".join(module))
            found |= {".".join([*module, alias.name]) for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "hybridge" and len(parts) > 1 else None


@pytest.mark.parametrize("path", files(), ids=str)
def test_rooms_import_only_what_stands_on_their_right(path: Path) -> None:
    room = path.parts[0].removesuffix(".py")
    if room == "__init__":
        return
    allowed = ALLOWED[room] | {room, "__version__"}
    if room not in ("errors", "units"):
        allowed |= {"errors", "units"}
    if path in SERVER_TO_ENGINE:
        allowed.add("engine")
    reached = {room_of(module) for module in imports(path)} - {None}
    assert reached <= allowed, f"{path} imports {reached - allowed}"


def test_replicas_know_of_the_server_only_what_runs_jobs() -> None:
    for path in files():
        if path.parts[0] == "scaleout":
            reached = {tuple(module.split(".")[2:4]) for module in imports(path) if room_of(module) == "server"}
            allowed = {("scheduling",), ("local_backend",)}
            assert {name[:1] for name in reached if name} <= allowed, path
            assert "ray" not in {module.split(".")[0] for module in imports(path)} or path.stem in RAY, path


@pytest.mark.parametrize("room", LAYERS)
def test_folders_of_a_room_import_only_what_their_layer_allows(room: str) -> None:
    layers = LAYERS[room]
    assert set(layers) == {path.parts[1] for path in files() if path.parts[0] == room and len(path.parts) > 2}
    for path in files():
        if path.parts[0] != room or len(path.parts) < 3:
            continue
        reached = {module.split(".")[2] for module in imports(path) if module.startswith(f"hybridge.{room}.")}
        assert reached & set(layers) <= layers[path.parts[1]] | {path.parts[1]}, path


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Also where the import is for types alone: whoever reads one of the two files has to read the other first."""
    names = {".".join(("hybridge", *path.with_suffix("").parts)): path for path in files()}
    graph = {name: imports(path) & set(names) - {name} for name, path in names.items()}
    while leaves := {name for name, reached in graph.items() if not reached}:
        graph = {name: reached - leaves for name, reached in graph.items() if name not in leaves}
    assert not graph


@pytest.mark.parametrize("path", [p for p in files() if p.parts[0] != "engine"], ids=str)
def test_torch_stays_where_it_belongs(path: Path) -> None:
    knows = any(module.split(".")[0] == "torch" for module in imports(path))
    assert not knows or not KNOWS_TORCH.isdisjoint({path, *path.parents})


@pytest.mark.parametrize(
    "path", sorted(INTEGRATIONS.rglob("*.py")), ids=lambda path: str(path.relative_to(INTEGRATIONS))
)
def test_integrations_use_the_client_alone(path: Path) -> None:
    allowed = FOR_INTEGRATIONS.get(path.relative_to(INTEGRATIONS).parts[0], {"client"}) | {"errors", "units"}
    reached = {room_of(module) for module in imports(path)} & set(ALLOWED)
    assert reached <= allowed, f"{path} imports {reached - allowed}"


def test_nobody_imports_the_cli() -> None:
    for path in files():
        if path.parts[0] not in ("cli", "__main__.py"):
            assert "cli" not in {room_of(module) for module in imports(path)}, path


def test_a_request_on_this_machine_needs_no_server() -> None:
    assert "server" not in {room_of(module) for module in imports(Path("cli/single_request.py"))}


def test_the_allowed_list_names_every_room() -> None:
    rooms = {path.parts[0].removesuffix(".py") for path in files()} - {"__init__"}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize(
    "module",
    [
        "hybridge",
        *("hybridge.errors", "hybridge.units", "hybridge.protocol", "hybridge.models", "hybridge.client"),
    ],
)
def test_the_client_side_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "PIL", "diffusers", "starlette", "typer"} & set(loaded)


def test_importing_the_package_loads_no_http_library() -> None:
    code = "import sys, hybridge; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "httpx" not in loaded


#: Functions of torch that make a tensor of its default dtype, or on its default device, unless told another.
FACTORIES = {
    *("arange", "as_tensor", "asarray", "bartlett_window", "blackman_window", "empty", "empty_permuted"),
    *("empty_strided", "eye", "from_file", "full", "hamming_window", "hann_window", "kaiser_window", "linspace"),
    *("logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor"),
    *("tril_indices", "triu_indices", "zeros"),
}


@pytest.mark.parametrize("path", [p for p in files() if p.parts[0] == "engine"], ids=str)
def test_the_engine_names_dtype_and_device_of_every_tensor_that_it_makes(path: Path) -> None:
    """Both defaults can be set by other code, while loops in C write to the tensor by its address."""
    for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert not {alias.name for alias in node.names} & FACTORIES, f"{path}:{node.lineno}: call it as torch's"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        assert called != "torch.Tensor", f"{path}:{node.lineno}: torch.Tensor(…) has no dtype to name"
        if called in {f"torch.{name}" for name in FACTORIES}:
            named = {keyword.arg for keyword in node.keywords}
            assert {"dtype", "device"} <= named, f"{path}:{node.lineno}: {called} without dtype or device"


def test_one_file_gives_addresses_to_loops_in_c() -> None:
    """It checks what lies there first; the other one compares addresses, to see whether weights were replaced."""
    users = {
        path.name
        for path in files()
        for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "data_ptr" and path.parts[0] == "engine"
    }
    assert users == {"tensor_pointers.py", "executor.py"}


@pytest.mark.parametrize(
    ("name", "extra"), [("connect", "engine"), ("RemoteVAE", "engine"), ("exact", "engine"), ("optimize", "lab")]
)
def test_a_missing_extra_is_named_in_a_sentence(name: str, extra: str) -> None:
    """In a process of its own, in which there is no torch."""
    code = f"import sys; sys.modules['torch'] = None; import hybridge; hybridge.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = f"hybridge.{name} needs torch, which is not installed: pip install 'hybridge[{extra}]'"
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {expected}"


@pytest.mark.parametrize(
    ("verb", "extra"), [("models", "cli,engine"), ("lab list", "lab"), ("bench vae", "lab"), ("demo", "server")]
)
def test_a_verb_without_its_extra_names_it(verb: str, extra: str) -> None:
    code = "import sys; sys.modules['torch'] = None; from hybridge.cli import main; main()"
    command = [sys.executable, "-c", code, *verb.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == (
        f"hybridge: this needs torch, which is not installed. Try: pip install 'hybridge[{extra}]'\n"
    )
