"""Two modes in which a step can be run: one writes down what memory tensors take, one spares them most of it."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """Writes down the births and deaths of storages, in bytes, and moments that were given a name.

    Attributes:
        log: i for the birth of the storage i, -1 - i for its death.
        sizes: bytes of each storage. widths: the last side of the tensor that it was born as.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []
        self.sizes: list[int] = []
        self.widths: list[int] = []
        self.marks: dict[str, int] = {}
        self._known: dict[int, tuple[int, weakref.ref]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self.number(one)
        return made

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor's storage, which is written down if it is new."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._known:
            number = len(self.sizes)
            self._known[key] = (number, weakref.ref(storage, lambda _: self._forget(key)))
            self.log.append(number)
            self.sizes.append(storage.nbytes())
            self.widths.append(tensor.shape[-1] if tensor.dim() else 1)
        return self._known[key][0]

    def mark(self, name: str) -> None:
        """Gives this moment a name."""
        self.marks[name] = len(self.log)

    def _forget(self, key: int) -> None:
        number, _ = self._known.pop(key)
        self.log.append(-1 - number)


class RealWholeNumbers(TorchDispatchMode):
    """Computes what involves real whole numbers alone for real; all else is left to the fake tensors.

    Whom a mixture of experts would ask cannot be known without numbers: each token asks the next ones in turn.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        kinds = [one.dtype for one in tensors] + [one for one in tree_leaves((args, kwargs)) if _is_dtype(one)]
        fake = any(isinstance(one, FakeTensor) for one in tensors)
        if fake and func is torch.ops.aten.topk.default:
            values, places = func(*args, **kwargs)
            return values, _in_turn(places.shape, args[0].shape[-1])
        if fake:
            return func(*_by_number(args), **kwargs)
        counts = func.overloadpacket is torch.ops.aten.arange and all(isinstance(one, int) for one in args)
        if any(kind.is_floating_point for kind in kinds) or not (kinds or counts):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def _by_number(args: tuple) -> tuple:
    """The arguments with every real mask in a list of indices (`x[mask]`) as the numbers of its true places."""
    if len(args) < 2 or not isinstance(args[1], (list, tuple)):
        return args
    indices: list[Any] = []
    for one in args[1]:
        if isinstance(one, Tensor) and one.dtype == torch.bool and not isinstance(one, FakeTensor):
            with unset_fake_temporarily():
                indices += one.nonzero(as_tuple=True)
        else:
            indices.append(one)
    return (args[0], indices, *args[2:])


def _in_turn(shape: torch.Size, count: int) -> Tensor:
    """0, 1, ... count - 1, 0, 1, ... in the given shape."""
    with unset_fake_temporarily():
        return (torch.arange(shape.numel()) % count).reshape(shape)


def _is_dtype(one: Any) -> bool:
    return isinstance(one, torch.dtype)
