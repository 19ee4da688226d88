"""``hybridge serve --ray``: what is refused before a cluster is asked."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from hybridge.server.settings import Settings


@pytest.mark.parametrize("text", ["0", "-1", "2:1", "1:", ":2", "two", "1:2:3", "1.5", "1001", ""])
def test_what_is_no_number_of_replicas_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="1 to 1000, or LEAST:MOST such as 1:4"):
        Settings(ray="local", replicas=text)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"replicas": "2"}, "--replicas needs --ray"),
        ({"replica_gpus": 1}, "--replica-gpus needs --ray"),
        ({"ray": "local", "prompt_cache_dir": "cache"}, "--prompt-cache-dir is for one process"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Settings(**given)  # type: ignore[arg-type] # as the command line gives it


def test_a_missing_ray_is_named_with_the_extra_that_has_it() -> None:
    """Where Ray is installed, too: in a process that cannot import it."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from hybridge.cli.serve_replicas import replicas_of\n"
        "from hybridge.server.settings import Settings\n"
        "from hybridge.engine import EngineOptions\n"
        "try: replicas_of(Settings(ray='local'), [], [], EngineOptions(), None)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "HybridgeError --ray needs ray, which is not installed. Try: pip install 'hybridge[ray]'\n"
    assert done.stdout == expected, done.stderr
