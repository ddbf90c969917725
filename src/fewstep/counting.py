"""Count what tensor operations cost while they run: floating-point operations (FLOPs), and the memory that tensors hold.

Expensive operations (convolutions, matrix products, attention) are counted and not performed: their results are zeros of the right shape.
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
# torch has no formula for attention on the CPU; a formula takes the operation's arguments, tensors or their shadows on the meta device
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)
    ),
}


class Counted(TorchDispatchMode):
    """A context in which operations that have a FLOPs formula are counted, and return zeros of the shape and layout of their real result.

    Args:
        known: tensors whose memory is not counted, such as weights, which exist already.

    Attributes:
        flops: FLOPs counted so far.
        held: total bytes of the tensors made in the context, after each operation that made one. Workspace that kernels allocate for
            themselves is not counted.

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
        # gradients that are not kept take no memory here: they are views of a single 0
        light = func.overloadpacket is _aten.convolution_backward and not torch.is_grad_enabled()
        return tree_map_only(Tensor, lambda shadow: self._zeros(shadow, light), outputs)

    def _zeros(self, shadow: Tensor, light: bool) -> Tensor:
        """Return zeros like `shadow`, counted with its full size; with `light` they are a view of a single 0."""
        zeros = torch.zeros((), dtype=shadow.dtype).expand(shadow.shape) if light else torch.zeros_like(shadow, device="cpu")
        self._hold(zeros, shadow.untyped_storage().nbytes())
        return zeros

    def _hold(self, tensor: Tensor, size: int) -> None:
        """Count `size` bytes for `tensor` until its memory is freed, unless its memory is counted or known already."""
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
