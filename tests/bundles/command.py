"""A bundle of films on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_bundle(bundle, output, *options):
    """Run a bundle's ``inference.json`` as a process of its own: what it printed, and the lines of its report by input."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(bundle / "configs" / "inference.json"),
        "--bundle_root",
        str(bundle),
        "--workflow_type",
        "infer",
        "--output_dir",
        str(output),
        *map(str, options),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=output.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    report = output / "report.jsonl"
    lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    return done, {line["input"]: line for line in lines}
