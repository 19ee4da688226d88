"""What the doctor says of one thing that it looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ..errors import HybridgeError
from ..models.doctor.causes import CAUSES, Finding


@dataclass(slots=True)
class Report:
    """Facts and findings.

    Attributes:
        target: What was looked at.
        facts: Names and values, in the order in which they were found.
        findings: What is wrong, or may be.
    """

    target: str
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether no finding is an error."""
        return not any(finding.is_error for finding in self.findings)

    def add(self, code: str, text: str, hint: str | None = None, *, is_certain: bool = True) -> None:
        """Add a finding; the hint is the cause's advice if none is given."""
        self.findings.append(Finding(code, text, hint or CAUSES[code].advice, is_certain))

    def add_error(self, error: HybridgeError, code: str) -> None:
        """Add an error of ours, under its own cause or else this code."""
        cause = error.cause if error.cause in CAUSES else code
        seen = ", ".join(
            part
            for part in (error.saw and f"saw {error.saw}", error.expected and f"expected {error.expected}")
            if part
        )
        self.add(str(cause), f"{error.what}: {seen}" if seen else error.what, error.hint)

    def to_json(self) -> str:
        """Return the report for programs."""
        findings = [
            {
                "code": finding.code,
                "severity": "error" if finding.is_error else "warning",
                "text": finding.text,
                "try": finding.hint,
            }
            for finding in self.findings
        ]
        document = {"target": self.target, "ok": self.is_well, "facts": self.facts, "findings": findings}
        return json.dumps(document, indent=2, ensure_ascii=False)

    def lines(self) -> list[str]:
        """Return the report for people."""
        lines = [self.target]
        lines += [f"  {name}: {_shown(value)}" for name, value in self.facts.items()]
        for finding in self.findings:
            lines.append(f"  {'error' if finding.is_error else 'warning'} {finding.code}: {finding.text}")
            lines += [f"    Try: {finding.hint}"] if finding.hint else []
        return [*lines, "  nothing wrong was found" if not self.findings else ""]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
