"""A device that any machine has: tensors on it are tensors on the CPU that claim ``cuda:0`` and refuse what a GPU refuses."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

_COPY, _GRAPHED = torch.nn.Parameter.__deepcopy__, torch.cuda.make_graphed_callables
CLAIMED = torch.device("cuda", 0)
_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__}
_ANY_DEVICE = {torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.data.__set__}
_ANY_DEVICE |= {torch.Tensor.type_as, torch.Tensor.to, torch.Tensor.set_, torch._has_compatible_shallow_copy_type}


def claims(tensor):
    """Whether a tensor claims to be on the device."""
    return getattr(tensor, "_claimed", False)


def _is_device(value):
    return isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "cuda", "cuda:0"))


def _is_claim(value):
    return _is_device(value) and torch.device(value).type == "cuda"


class ClaimedDevice(TorchFunctionMode):
    """In this context ``cuda`` works: what is made there or computed from it claims to be there.

    Numpy is refused as on a GPU, and so is one operation on tensors of both devices, unless one is a single number.
    """

    def __enter__(self):  # the two ways from one tensor to another that torch does not tell modes of
        def as_subclass(tensor, kind):
            return _mark(torch._C.TensorBase.as_subclass(tensor, kind), claims(tensor), tensor)

        def deepcopied(parameter, memo):
            return _mark(_COPY(parameter, memo), claims(parameter), parameter)

        torch.Tensor.as_subclass, torch.nn.Parameter.__deepcopy__ = as_subclass, deepcopied
        torch.cuda.make_graphed_callables = lambda function, given: function  # what a graph computes
        return super().__enter__()

    def __exit__(self, *error):
        del torch.Tensor.as_subclass
        torch.nn.Parameter.__deepcopy__, torch.cuda.make_graphed_callables = _COPY, _GRAPHED
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == torch.Tensor.__deepcopy__:  # its memo may hold tensors of both devices
            return _mark(func(*args, **kwargs), claims(args[0]), args[0])
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        there = [t for t in tensors if claims(t)]
        if func == torch.Tensor.device.__get__:
            return CLAIMED if there else func(*args)
        if func == torch.Tensor.is_cuda.__get__:
            return bool(there)
        if there and func in _NUMPY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        wants = [v for v in tree_flatten((args, kwargs))[0] if _is_device(v)]
        moved = bool(wants) and _is_claim(wants[-1])
        if func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **kwargs)
        if func == torch.Tensor.cuda:
            func, args, kwargs, moved = torch.clone, args[:1], {}, True
        here = [t for t in tensors if not claims(t) and t.ndim]
        if there and here and func not in _ANY_DEVICE:
            raise RuntimeError(f"Expected all tensors to be on the same device, {func} got both")
        args, kwargs = tree_map(lambda v: torch.device("cpu") if _is_claim(v) else v, (args, kwargs))
        result = func(*args, **kwargs)
        leaves = func in (torch.Tensor.cpu,) or (func == torch.Tensor.to and wants and not moved)
        if func == torch.Tensor.data.__set__:
            args[0]._claimed = claims(args[1])
        elif func in (torch.Tensor.copy_, torch.Tensor.__setitem__):
            pass  # the target stays where it is
        elif func == torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):
            result = _mark(result, claims(args[1]), args[0])
        elif leaves:
            result = _mark(result, False, args[0])
        elif moved or there:
            result = tree_map(lambda t: _mark(t, True, args[0] if args else None), result)
        return result


def _mark(value, claimed, source):
    """A tensor with or without the claim; never the source itself if its claim differs."""
    if isinstance(value, torch.Tensor) and claims(value) != claimed:
        value = value.clone() if value is source else value
        value._claimed = claimed
    return value
