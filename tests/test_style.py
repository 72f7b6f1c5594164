"""A machine checks the style: what it would change or object to is printed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = {"ruff": ("check", "."), "ruff-format": ("format", "--check", "."), "mypy": ()}


@pytest.mark.parametrize("check", CHECKS)
def test_style(check):
    tool = check.partition("-")[0]
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([sys.executable, "-m", tool, *CHECKS[check]], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_library_keeps_to_its_budget_of_lines():
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "monai_diffeo").rglob("*.py"))
    assert lines <= 23_410, f"{lines} lines: leave something out"
