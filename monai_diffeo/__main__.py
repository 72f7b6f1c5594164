"""``python -m monai_diffeo`` is the command ``monai-diffeo``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    here, clone = Path(sys.path[0] or ".").resolve(), Path(__file__).resolve().parents[1]
    if here != clone and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the current folder may be a bundle of somebody else: its torch.py must not be ours
    from monai_diffeo.cli import program

    program()
