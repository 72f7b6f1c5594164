"""Look at what README's main command wrote: two lungs in the right places, a report, a picture."""

import json
import pathlib
import sys

import nibabel
import numpy as np
from skimage.measure import label

output = pathlib.Path(sys.argv[1])
(mask_path,) = output.rglob("*_lungs.nii.gz")
mask = np.squeeze(np.asarray(nibabel.load(mask_path).dataobj))
if mask.shape != (1955, 1841) or set(np.unique(mask)) != {0, 1}:
    sys.exit(f"mask: expected 1955x1841 zeros and ones, got {mask.shape} with {np.unique(mask)}")
parts = label(mask)
if parts.max() != 2:
    sys.exit(f"mask: expected two lungs, got {parts.max()} components")
centers = sorted(np.argwhere(parts == k).mean(0)[1] / mask.shape[1] for k in (1, 2))
if not (0.1 < centers[0] < 0.5 < centers[1] < 0.9):
    sys.exit(f"mask: the lungs' centres lie at {centers} of the width, expected one on each side")
areas = [float((parts == k).mean()) for k in (1, 2)]
if not all(0.03 < area < 0.3 for area in areas):
    sys.exit(f"mask: the lungs cover {areas} of the film")
(line,) = (output / "report.jsonl").read_text().splitlines()
record = json.loads(line)
if record["status"].startswith(("failed", "rejected")) or record["folding_fraction"] != 0:
    sys.exit(f"report: {record}")
(figure,) = output.rglob("*.png")
if figure.stat().st_size < 50_000:
    sys.exit(f"figure: only {figure.stat().st_size} bytes")
print(
    f"mask {mask.shape}, lungs at {centers[0]:.2f} and {centers[1]:.2f} of the width, status {record['status']}, "
    f"figure {figure.name}: 1 passed, 0 failed"
)
