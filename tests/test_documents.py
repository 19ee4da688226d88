"""What the documents claim, as far as a program can check it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cli.md", "engine.md", "models.md", "workbench.md"])
def test_generated_documents_are_what_would_be_generated(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == generator().DOCUMENTS[name](), "run `make docs`"


def test_every_table_of_the_workbench_has_its_place() -> None:
    places = re.findall(r"<!-- generated:(\w+) -->", (ROOT / "docs" / "workbench.md").read_text(encoding="utf-8"))
    assert sorted(places) == sorted(generator()._TABLES)


def documents() -> list[Path]:
    skipped = {".venv", ".git", "hybridge-demo"}
    return [path for path in sorted(ROOT.rglob("*.md")) if not skipped & set(path.relative_to(ROOT).parts)]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def anchors(document: Path) -> set[str]:
    """What GitHub makes of a document's headings, outside of its code."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_headings_name_a_heading(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            document = path.parent / target if target else path
            assert anchor in anchors(document), f"{path.name} links to {target}#{anchor}"


def test_the_path_of_a_decode_names_functions_that_exist() -> None:
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    hops = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| `(\w+)` \|", text, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in hops] == list(range(1, len(hops) + 1))
    assert 1 < len(hops) <= 12
    for _, file, name in hops:
        source = (ROOT / "src" / "hybridge" / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(?:(?:async )?def|class) {name}\b", source, flags=re.MULTILINE), (
            f"{file} has no {name}"
        )


def test_the_map_names_every_folder() -> None:
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "hybridge"
    for folder in sorted(path.parent for path in package.rglob("__init__.py")):
        name = folder.relative_to(package).as_posix()
        if name.count("/") > 1 or name == ".":
            continue
        parent = any((package / name).glob("*/__init__.py"))
        assert f"`{name}/" in text or parent, f"docs/structure.md does not name {name}/"


def test_both_readmes_have_the_same_parts() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))

    def shape(text: str) -> list[tuple[str, int]]:
        """The level of every heading, and how much code, tables and links stand below it."""
        parts = re.split(r"^(#+) .*$", text, flags=re.MULTILINE)[1:]
        return [
            (level, body.count("```") + body.count("\n|") + body.count("]("))
            for level, body in zip(parts[::2], parts[1::2], strict=True)
        ]

    assert shape(english) == shape(chinese)
    code = re.compile(r"```python\n(.*?)```", re.DOTALL)
    assert len(code.findall(english)) == len(code.findall(chinese))


def test_the_starter_model_is_what_the_catalogue_says() -> None:
    import json

    from hybridge.models import look_up, spec_from_config

    spec = look_up("starter")
    folder = Path(spec.source)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = spec_from_config("starter", spec.source, None, config)
    assert (found.kind, found.latent_channels, found.spatial_factor) == ("kl", 4, 8)
    assert found.normalisation == spec.normalisation
    assert (folder / "diffusion_pytorch_model.safetensors").stat().st_size <= 8_000_000
