import sys

import pytest


@pytest.fixture(autouse=True, scope="module")
def modules_of_one_bundle():
    """Each bundle brings a package that is called scripts; no file of tests sees that of another."""
    path = sys.path[:]
    yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
