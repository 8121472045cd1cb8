"""What tensors and the allocator really hold: the measured side of every comparison with training/memory.py."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def held(tensors: Iterable[Any], known: set[int]) -> int:
    """Bytes of the tensors' storages that are not in `known` yet; they are from now on. What is no tensor is skipped.

    Args:
        tensors: any objects.
        known: addresses of storages.
    """
    size = 0
    for one in tensors:
        if isinstance(one, Tensor):
            storage = one.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                size += storage.nbytes()
    return size


def scales(parameter: nn.Parameter) -> list[Any]:
    """What bitsandbytes keeps beside a packed weight."""
    state = vars(parameter).get("quant_state")
    if state is None:
        return [vars(parameter).get("SCB")]
    nested = [state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, state.offset, *nested]


def held_by(model: nn.Module, known: set[int]) -> int:
    """Bytes of parameters, what is beside packed ones, and buffers."""
    parameters = list(model.parameters())
    beside = [one for parameter in parameters for one in scales(parameter)]
    return held([*parameters, *beside, *model.buffers()], known)


def allocator_peak(model: nn.Module, step: Callable[[], None]) -> tuple[int, int]:
    """What torch's CPU allocator hands out at most during `step`, in bytes: without gradients of parameters, and with.

    The profiler sees every allocation, those inside kernels too. An allocation is a gradient's if it is the last at
    the address where one lies afterwards.

    Args:
        model: whose parameters have no gradients yet.
        step: a forward and a backward pass.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    places = {one.grad.untyped_storage().data_ptr() for one in model.parameters() if one.grad is not None}
    events = sorted(_allocations(profiler.profiler.kineto_results.experimental_event_tree()))
    last = {address: i for i, (_, address, size) in enumerate(events) if size > 0 and address in places}
    gradients = set(last.values())
    without = [event for i, event in enumerate(events) if i not in gradients]
    return highest(without), highest(events)


def highest(events: list[tuple[int, int, int]]) -> int:
    """The peak of (time, address, bytes or -bytes); what was there before and is freed does not count."""
    born: dict[int, int] = {}
    now = most = 0
    for _, address, size in events:
        if size > 0:
            born[address] = size
            now += size
            most = max(most, now)
        else:
            now -= born.pop(address, 0)
    return most


def _allocations(nodes: list[Any]) -> list[tuple[int, int, int]]:
    found = []
    for node in nodes:
        if node.tag.name == "Allocation":
            found.append((node.start_time_ns, node.extra_fields.ptr, node.extra_fields.alloc_size))
        found += _allocations(node.children)
    return found
