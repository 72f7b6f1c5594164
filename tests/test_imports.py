"""`import monai_diffeo` needs torch, monai and numpy, and no other package of third parties."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WATCH = """
import json, sys
wanted = set()
class Watch:  # asked for each module that is not loaded yet; notes the package if one of our modules wants it
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].startswith(("importlib", "_frozen_importlib", "monai.utils.module")):
            frame = frame.f_back
        if frame.f_globals["__name__"].partition(".")[0] == "monai_diffeo":
            wanted.add(name.partition(".")[0])
sys.meta_path.insert(0, Watch())
"""


def wanted(code):
    """Packages of others that our modules import while some code runs, optional imports too."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", f"{WATCH}\n{code}\nprint(json.dumps(sorted(wanted)))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=environment)
    return set(json.loads(done.stdout.splitlines()[-1])) - set(sys.stdlib_module_names) - {"monai_diffeo"}


def test_the_names_of_the_root_need_torch_monai_and_numpy():
    assert wanted("import monai_diffeo\nfor name in monai_diffeo.__all__: getattr(monai_diffeo, name)") <= {
        "torch",
        "monai",
        "numpy",
    }


def test_the_import_alone_needs_nothing():
    assert wanted("import monai_diffeo") == set()


def test_what_our_modules_import_is_seen():
    assert wanted("import monai_diffeo.cli") >= {"click"}
