"""What operations cost, as they go by: floating-point operations, and the memory that tensors hold.

What takes time, convolutions, matrix products and attention, is counted and left out: its results are zeros of the right shape.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_aten = torch.ops.aten
# torch has no formula for the CPU's attention; arguments are those of the operation, tensors or shadows of them
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)
    ),
}


class Counted(TorchDispatchMode):
    """Inside, operations with a formula for their FLOPs are counted, and give zeros of the shape and layout that they would have given.

    Args:
        known: tensors that are there anyway, such as weights, whose memory is not counted.

    Attributes:
        flops: so far.
        held: bytes that tensors made in here hold, after each operation that made some. What kernels need for themselves is not in it.

    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.flops, self.held = 0, [0]
        self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func.overloadpacket)
        if formula is None:
            found = func(*args, **kwargs)
            for tensor in tree_leaves(found):
                if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                    self._hold(tensor, tensor.untyped_storage().nbytes())
            return found
        inputs, options = tree_map_only(Tensor, _shadow, (args, kwargs))
        outputs = func(*inputs, **options)
        self.flops += formula(*inputs, **options, out_val=outputs)
        # gradients that nobody keeps need no memory of their own here: one 0, seen everywhere
        light = func.overloadpacket is _aten.convolution_backward and not torch.is_grad_enabled()
        return tree_map_only(Tensor, lambda shadow: self._zeros(shadow, light), outputs)

    def _zeros(self, shadow: Tensor, light: bool) -> Tensor:
        """What stands for a result like `shadow`, and counts as all of it."""
        zeros = torch.zeros((), dtype=shadow.dtype).expand(shadow.shape) if light else torch.zeros_like(shadow, device="cpu")
        self._hold(zeros, shadow.untyped_storage().nbytes())
        return zeros

    def _hold(self, tensor: Tensor, size: int) -> None:
        """Count `size` bytes for `tensor` from now on, as long as its memory is held."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.held.append(self._now)
        weakref.finalize(storage, self._let_go, key, size).atexit = False

    def _let_go(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _shadow(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
