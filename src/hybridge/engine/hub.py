"""Repositories of the Hugging Face hub: download them, and find them in its cache."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ModelUnavailable


def snapshot(folder: Path) -> Path:
    """Return the main snapshot of a hub cache's ``models--owner--name``, else its newest; else the folder."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir() or (folder / "config.json").exists():
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (commit := snapshots / main.read_text(encoding="utf-8")[:200].strip()).is_dir():
        return commit
    return max(
        (path for path in snapshots.iterdir() if path.is_dir()),
        key=lambda path: path.stat().st_mtime,
        default=folder,
    )


def download(
    name: str, repository: str, subfolder: str | None, patterns: list[str], *, is_local: bool = False
) -> Path:
    """Download files of a hub repository, or take them from the hub's cache.

    Args:
        name: Name of the model, for errors.
        repository: ``owner/name``.
        subfolder: The subfolder of the files; None for the top level.
        patterns: File names, with ``*`` as a wildcard.
        is_local: Whether only the cache is looked into.

    Returns:
        The folder of the whole repository.

    Raises:
        ModelUnavailable: when the files cannot be downloaded; the error says what to try.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        allowed = [prefix + pattern for pattern in patterns]
        return Path(snapshot_download(repository, allow_patterns=allowed, local_files_only=is_local))
    except hub.GatedRepoError:
        raise ModelUnavailable(
            f"{name} is gated",
            saw=repository,
            hint=f"accept its licence at huggingface.co/{repository}, then `hf auth login` or set HF_TOKEN",
        ) from None
    except hub.RepositoryNotFoundError:
        raise ModelUnavailable(
            f"the hub has no {repository}", saw=name, hint="check the name, or set HF_TOKEN if it is private"
        ) from None
    except hub.HFValidationError as error:
        raise ModelUnavailable(f"no folder and no repository for {name}", saw=error, where=repository) from None
    except (hub.LocalEntryNotFoundError, hub.HfHubHTTPError, OSError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        raise ModelUnavailable(
            f"{name} cannot be downloaded",
            saw="HF_HUB_OFFLINE is set, and the weights are not in the cache" if offline else _cause_of(error),
            hint=f"`hybridge models --download {name}` where there is a network, or {name}=/path/to/folder",
        ) from None


def _cause_of(error: Exception) -> str:
    """Return why a download failed: the hub's own error only says that the file is not in the cache either."""
    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause).partition("\n")[0]
    return f"{type(cause).__name__}: {said[:200]}"
