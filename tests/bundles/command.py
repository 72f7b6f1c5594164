"""A bundle of films, as a process of its own and in this one."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lines_of(output):
    """The lines of a report by input, and its closing line, None if there is none."""
    report = output / "report.jsonl"
    lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    closing = [line for line in lines if "end" in line]
    return {line["input"]: line for line in lines if "input" in line}, closing[0] if closing else None


def run_bundle(bundle, output, *options):
    """Run a bundle's ``inference.json`` as a process of its own: what it printed, and the lines of its report by input."""
    command = [
        *(sys.executable, "-W", "ignore", "-m", "monai.bundle", "run"),
        *("--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle)),
        *("--workflow_type", "infer", "--output_dir", str(output), *map(str, options)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=output.parent, env=environment)
    return done, lines_of(output)[0]


def workflow(bundle, *configs, **options):
    """A bundle's workflow, initialised in this process."""
    from monai.bundle import ConfigWorkflow

    kind = "train" if "train" in (configs or ("",))[0] else "infer"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = [str(bundle / "configs" / name) for name in configs or ("inference.json",)]
        flow = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **{"bundle_root": str(bundle), **options})
        flow.initialize()
    return flow


def run_here(bundle, output, **options):
    """Run a bundle of films in this process: the exit status, and the lines of its report by input."""
    flow = workflow(bundle, output_dir=str(output), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flow.run()
        (status,) = flow.finalize()
    return status, lines_of(output)[0]
