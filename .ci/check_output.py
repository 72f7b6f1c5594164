"""Look at what README's main command wrote: two lungs in the right places, a report of schema 2 to its end, a picture."""

import json
import pathlib
import sys

import nibabel
import numpy as np
from skimage.measure import label

output = pathlib.Path(sys.argv[1])
(mask_path,) = output.rglob("*_lungs.nii.gz")
mask = np.asarray(nibabel.load(mask_path).dataobj)  # columns x rows x 1
mask = mask[..., 0].T if mask.ndim == 3 else mask
if mask.shape != (1955, 1841) or set(np.unique(mask)) != {0, 1}:
    sys.exit(f"mask: expected 1955x1841 zeros and ones, got {mask.shape} with {np.unique(mask)}")
parts = label(mask)
if parts.max() != 2:
    sys.exit(f"mask: expected two lungs, got {parts.max()} components")
lungs = sorted((parts == k for k in (1, 2)), key=lambda lung: np.argwhere(lung).mean(0)[1])
centers = [float(np.argwhere(lung).mean(0)[1] / mask.shape[1]) for lung in lungs]
if not (0.1 < centers[0] < 0.5 < centers[1] < 0.9):
    sys.exit(f"mask: the lungs' centres lie at {centers} of the width, expected one on each side")
areas = [float(lung.mean()) for lung in lungs]
if not all(0.03 < area < 0.3 for area in areas):
    sys.exit(f"mask: the lungs cover {areas} of the film")

lines = [json.loads(line) for line in (output / "report.jsonl").read_text().splitlines()]
if len(lines) != 2 or any(line["schema"] != 2 for line in lines):
    sys.exit(f"report: expected a film and a closing line of schema 2, got {lines}")
record, closing = lines
if record["status"].startswith(("failed", "rejected")) or record["folding_fraction"] != 0:
    sys.exit(f"report: {record}")
sides = [record["areas"]["right"], record["areas"]["left"]]  # PatientOrientation of this film: right is at the left
if None in sides or not np.allclose(sides, areas, rtol=0.02):
    sys.exit(f"report: right and left lung are said to cover {sides} of the film, the mask says {areas}")
if record["mask"] != mask_path.relative_to(output).as_posix():
    sys.exit(f"report: names the mask {record['mask']}, it is {mask_path}")
count = {"canonicalized": 0, "left alone": 0, "rejected": 0, "failed": 0, record["status"].split(":")[0]: 1}
expected = {"end": True, "films": 1, "counts": count, "exit_status": 0, "removed": []}
if {key: closing.get(key) for key in expected} != expected or closing["versions"] != record["versions"]:
    sys.exit(f"report: expected the closing line {expected}, got {closing}")
(figure,) = output.rglob("*.png")
if figure.relative_to(output).as_posix() != record["figure"] or figure.stat().st_size < 50_000:
    sys.exit(f"figure: {figure.name} of {figure.stat().st_size} bytes, the report names {record['figure']}")
print(
    f"mask {mask.shape}, lungs at {centers[0]:.2f} and {centers[1]:.2f} of the width, status {record['status']}, "
    f"figure {figure.name}: 1 passed, 0 failed"
)
