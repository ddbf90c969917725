"""Prompts of text-to-image networks: a label is the row of a prompt in a table that the network holds beside its weights."""

from typing import Any, Protocol

from torch import Tensor


class Rows(Protocol):
    """A table of encoded prompts, addressed by row, such as `fewstep.data.prompt_table.PromptTable`."""

    def __len__(self) -> int: ...

    def rows(self, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (hidden [B, tokens, width], pooled [B, width] or None) of rows int64 [B]; row ``len(self)`` stands for no prompt."""
        ...


class EncodedPrompts:
    """`Rows` in memory: ``hidden`` [n + 1, tokens, width] and ``pooled`` [n + 1, width] or None, the row for no prompt last."""

    def __init__(self, hidden: Tensor, pooled: Tensor | None = None) -> None:
        self.hidden, self.pooled = hidden, pooled

    def __len__(self) -> int:
        return len(self.hidden) - 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "EncodedPrompts":
        return self  # its tensors never change, so that copies can share them

    def rows(self, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (hidden [B, tokens, width], pooled [B, width] or None) of the rows `label` int64 [B]."""
        label = label.to(self.hidden.device)
        return self.hidden[label], None if self.pooled is None else self.pooled[label]


def told_rows(prompts: Rows | None, label: Tensor, x: Tensor, needs_pooled: bool) -> tuple[Tensor, Tensor | None]:
    """Return (hidden [B, tokens, width], pooled [B, width] or None) of the rows `label` int64 [B] of `prompts`.

    The tensors are on the device and of the dtype of `x`. Raises ValueError where `prompts` is None, or where a pooled vector is needed and
    the prompts have none.
    """
    if prompts is None:
        raise ValueError("the network has no prompts to look up labels in; set its attribute prompts to a table of them")
    hidden, pooled = prompts.rows(label)
    if pooled is None and needs_pooled:
        raise ValueError("the network takes a pooled vector beside the text, and its prompts have none; encode them by its own model")
    return hidden.to(x.device, x.dtype), None if pooled is None else pooled.to(x.device, x.dtype)
