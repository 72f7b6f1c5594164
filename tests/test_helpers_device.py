"""The claimed device refuses what a GPU refuses, or the tests that use it prove nothing."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.helpers_device import CLAIMED, ClaimedDevice, claims


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_tensors_there_refuse_numpy_and_mixing_and_come_back_by_cpu(kind):
    with ClaimedDevice():
        here = kind(torch.arange(4.0))
        there = here.to("cuda")
        assert there.device == CLAIMED and here.device.type == "cpu" and there.is_cuda and claims(there * 2 + 1)
        assert claims(there.as_subclass(torch.Tensor)) and claims(MetaTensor(there)) and not claims(MetaTensor(here))
        for refused in (np.asarray, lambda t: t.numpy(), np.array):
            with pytest.raises(TypeError, match="cpu"):
                refused(there)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        assert np.array_equal(np.asarray(there.cpu()), np.arange(4.0)) and not claims(there.cpu()) and claims(there)
        assert (there[1:].sum().item(), there.tolist()) == (6.0, [0.0, 1.0, 2.0, 3.0])
        assert claims(torch.zeros(2, device=there.device)) and claims(there.new_zeros(3)) and not claims(torch.zeros(2))
        assert (
            claims(here.to(there))
            and not claims(there.to("cpu"))
            and claims(there.double())
            and claims(there + torch.tensor(1.0))
        )


def test_modules_move_there_and_take_weights_from_the_cpu():
    with ClaimedDevice():
        layer = torch.nn.BatchNorm1d(4).to(torch.device("cuda"))
        state = {k: v.clone() for k, v in torch.nn.BatchNorm1d(4).state_dict().items()}
        layer.load_state_dict(state)
        out = layer.eval()(torch.rand(2, 4, device="cuda"))
        assert claims(out) and all(map(claims, layer.parameters())) and claims(layer.running_mean)
        with pytest.raises(RuntimeError, match="same device"):
            layer(torch.rand(2, 4))
