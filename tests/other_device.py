"""A device that stands for a GPU where there is none: it computes on the processor, with tensors of
its own.

What would fail on a GPU because a tensor or a random generator was left on the processor fails here
too, and what would have to wait for the GPU is counted. torch calls this a backend in Python; the
interface is an experiment of theirs.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

try:
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )
except (
    ImportError
):  # the package runs on torch 2.6 and later, this came later; only modules about the device skip
    pytest.skip("this torch has no backends in Python", allow_module_level=True)


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def is_available(self):
        return True


_setup_privateuseone_for_python_backend("other", backend_module=_Backend())
DEVICE = torch.device("other:0")
_COPIES = ("aten::_to_copy", "aten::copy_")
_INDEXED = (
    "aten::index",
    "aten::index_put_",
    "aten::_index_put_impl_",
)  # a GPU takes indices of the processor, too
_WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
waits: list[
    str
] = []  # operations since it was emptied whose results the processor has to know before it goes on


class OnDevice(torch.Tensor):
    """A tensor of the device, around the one of the processor that holds its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        with torch.inference_mode(False):
            tensor = torch.Tensor._make_wrapper_subclass(
                cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
                device=DEVICE,
            )  # fmt: skip
        tensor.held = held
        return tensor

    def __init__(self, held):
        pass

    def __repr__(self):
        return f"{self.held!r} on the other device"

    def __deepcopy__(self, memo):
        with torch.no_grad():
            copied = OnDevice(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            return memo.setdefault(id(self), torch.nn.Parameter(copied, self.requires_grad))
        return memo.setdefault(id(self), copied.requires_grad_(self.requires_grad))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, *args, **(kwargs or {}))


def _compute(func, *args, **kwargs):
    """An operation with anything of the device among its arguments, or that is to make something
    there.
    """
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return func.decompose(*args, **kwargs)
    name = func.name().partition(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnDevice)}
    there = (
        bool(ours)
        if kwargs.get("device") is None
        else torch.device(kwargs["device"]).type == DEVICE.type
    )
    if name == "aten::copy_":
        there = isinstance(args[0], OnDevice)
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
    if (
        ours
        and strangers
        and name not in _COPIES
        and not (name in _INDEXED and isinstance(args[0], OnDevice))
    ):
        raise RuntimeError(
            f"{name} of tensors on both devices: {[(type(x).__name__, *x.shape) for x in tensors]}"
        )
    if there and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{name} on the device with a generator of the processor")
    if name in _WAITS or (name in _COPIES and ours and not there):
        waits.append(name)
    kwargs = {
        key: torch.device("cpu") if key == "device" else value for key, value in kwargs.items()
    }
    held_args, held_kwargs = tree_map(
        lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs)
    )
    # Whether a tensor is to be read as its conjugate or negative is lost on the way here, so it is
    # computed.
    func = {"aten::_conj": torch.ops.aten.conj_physical, "aten::_neg_view": torch.ops.aten.neg}.get(
        name, func
    )
    found = func(*held_args, **held_kwargs)
    if not there:
        return found

    def wrapped(x):
        if not isinstance(x, torch.Tensor):
            return x
        return (
            ours[id(x)] if id(x) in ours else OnDevice(x)
        )  # an operation in place gives its argument

    return tree_map(wrapped, found)


_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(lambda func, *args, **kwargs: _compute(func, *args, **kwargs), "PrivateUse1")
_LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


@contextmanager
def present():
    """While the device is there; a few functions of torch in C++ know nothing of it and are
    replaced.
    """

    def make(original):
        def made(data, *args, device=None, **kwargs):
            if (
                device is None
                or torch.device(device).type != DEVICE.type
                or isinstance(data, OnDevice)
            ):
                return original(data, *args, device=device, **kwargs)
            return OnDevice(original(data, *args, **kwargs))

        return made

    def new_tensor(self, data, **kwargs):
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})

    def save(data, *args):  # read again with map_location="cpu", it is the same
        write(tree_map(lambda x: x.cpu() if isinstance(x, OnDevice) else x, data), *args)

    to_list, write = torch.Tensor.tolist, torch.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", make(torch.tensor))
        patch.setattr(torch, "as_tensor", make(torch.as_tensor))
        patch.setattr(torch.Tensor, "new_tensor", new_tensor)
        patch.setattr(torch, "save", save)
        patch.setattr(torch.Tensor, "tolist", lambda self: to_list(self.cpu()))
        yield DEVICE
