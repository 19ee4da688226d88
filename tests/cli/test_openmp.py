"""How long OpenMP's threads spin, as OpenMP itself says it when torch is loaded.

OpenMP reads its variables once, when a process loads it, so each test needs a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spins(*command: str, **variables: str) -> str:
    """What OpenMP takes GOMP_SPINCOUNT to be in a process that runs ``hybridge`` and then loads torch."""
    code = (
        "import sys\nfrom hybridge.cli import main\ntry:\n    main()\nexcept SystemExit:\n    pass\nimport torch\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    told = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=clean | {"OMP_DISPLAY_ENV": "verbose"} | variables,
        capture_output=True, text=True, check=True, timeout=120,
    ).stderr  # fmt: skip
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", told)
    if found is None:
        pytest.skip("this torch runs on another OpenMP than GNU's")
    return found[1]


def test_threads_of_a_command_spin_briefly() -> None:
    assert spins("plan", "starter") == "1000"


@pytest.mark.parametrize(
    ("variables", "expected"), [({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_what_the_user_has_set_stays(variables: dict[str, str], expected: str) -> None:
    assert spins("models", **variables) == expected


def test_benchmarks_run_in_the_environment_that_they_are_given() -> None:
    assert spins("lab", "list", "--help") not in ("0", "1000")
