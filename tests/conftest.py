import os
import signal
import threading

import pytest
import torch
from hypothesis import settings

from tests.helpers import tiny_canonicalizer

settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("fixed")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background, and all that it starts, ignore Ctrl-C
# two workers share two cores
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture
def canonicalizer():
    """Moves every image by the same known small deformation."""
    return tiny_canonicalizer()
