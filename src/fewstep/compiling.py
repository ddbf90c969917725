"""Compile networks by `torch.compile` for drawing samples, with an error that says why where that is not possible."""

from typing import Any

import torch
from torch import nn

from fewstep.denoisers.adapted import grounds
from fewstep.errors import UserError, first_line


def compile_to_sample(denoiser: nn.Module, asked: str) -> None:
    """Have the network of `denoiser` compiled at its first call, and again for every new batch size. It must not be trained afterwards.

    On a CPU the weights are rearranged once for the kernels (option `freezing` of torch). Results agree with the uncompiled network up to
    rounding. Raises UserError for a denoiser with low-rank adapters (LoRA); the compiled network raises UserError when it is called where
    it cannot be compiled. Both messages name `asked`, the option or setting by which the user asked for compiling.
    """
    if grounds(denoiser):
        raise UserError(
            f"{asked} was asked for, and this generator puts low-rank adapters (LoRA) into its network at every call, which a compiled "
            "network would not notice; leave it out"
        )
    network: Any = getattr(denoiser, "network", denoiser)
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    compiled = torch.compile(network.forward, dynamic=False, options={"freezing": True} if on_cpu else None)

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            if (why := not_compiled(error)) is not None:
                raise UserError(
                    f"{asked} was asked for, and this network cannot be compiled here ({why}); leave it out, or install what is missing"
                ) from error
            raise

    network.forward = forward


def not_compiled(error: BaseException) -> str | None:
    """Return in a few words why torch could not compile, where `error` comes from compiling; None for other errors."""
    cause: BaseException | None = error
    while cause is not None:
        home = type(cause).__module__
        if home.startswith(("torch._dynamo", "torch._inductor", "triton")) or "aot_autograd" in str(cause):
            named = next((line for line in str(error).splitlines() if "compiler" in line.lower()), first_line(error))
            return named.strip()[:200]
        cause = cause.__cause__ or cause.__context__
    return None
