"""A film through MONAI Label's task for bundles, unchanged: run by a Python that has monailabel.

``python label.py BUNDLE FILM OUT``: a request for the film is answered twice, the second time from what the task has cached.
The second mask is saved to ``OUT`` as ``.npy``; beside it lies the file of the task's writer, ``.nii.gz``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from stubs import stub_missing


def main(bundle: str, film: str, out: str) -> None:
    """Run one film."""
    print("without content:", ", ".join(stub_missing("torchvision")) or "nothing")
    from monailabel.tasks.infer.bundle import BundleInferTask

    task = BundleInferTask(bundle, {})
    request = {"image": film, "device": "cpu", "result_extension": ".nii.gz"}
    file, _ = task(dict(request))
    shutil.copy(file, Path(out).with_suffix(".nii.gz"))
    _, data = task({**request, "skip_writer": "true"})
    mask = np.asarray(data["pred"])
    np.save(out, mask)
    print("labels:", task.labels, "answered:", mask.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
