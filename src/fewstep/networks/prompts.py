"""What networks that make images of prompts are told: a label is the row of a prompt in a table, which they have beside their weights."""

from typing import Any, Protocol

from torch import Tensor


class Rows(Protocol):
    """Encoded prompts by their rows, as `fewstep.data.prompt_table.PromptTable` has them."""

    def __len__(self) -> int: ...

    def rows(self, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """(hidden [B, tokens, width], pooled [B, width] or None) of rows int64 [B]; row ``len(self)`` stands for no prompt."""
        ...


class EncodedPrompts:
    """`Rows` in memory: ``hidden`` [n + 1, tokens, width] and ``pooled`` [n + 1, width] or None, the row for no prompt last."""

    def __init__(self, hidden: Tensor, pooled: Tensor | None = None) -> None:
        self.hidden, self.pooled = hidden, pooled

    def __len__(self) -> int:
        return len(self.hidden) - 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "EncodedPrompts":
        return self  # nothing in it changes

    def rows(self, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of `label` int64 [B]."""
        label = label.to(self.hidden.device)
        return self.hidden[label], None if self.pooled is None else self.pooled[label]


def told_rows(prompts: Rows | None, label: Tensor, x: Tensor, needs_pooled: bool) -> tuple[Tensor, Tensor | None]:
    """(hidden [B, tokens, width], pooled [B, width] or None) of the rows `label` int64 [B] of `prompts`, where and of what type `x` is.

    Raises ValueError where there are no prompts, or a pooled vector is needed and they have none.
    """
    if prompts is None:
        raise ValueError("the network has no prompts to look up labels in; set its attribute prompts to a table of them")
    hidden, pooled = prompts.rows(label)
    if pooled is None and needs_pooled:
        raise ValueError("the network takes a pooled vector beside the text, and its prompts have none; encode them by its own model")
    return hidden.to(x.device, x.dtype), None if pooled is None else pooled.to(x.device, x.dtype)
