"""`FoldedLora`: a LoRA fine-tune as the plain weights that do the same.

Beside an attention weight `w` there are `lora_a` and `lora_b`. Beside a feed-forward weight `x`
there are `x_lora_a` and `x_lora_b`. π0's Gemma differs from the paper in two ways, which folding
reproduces. The feed-forward product is not scaled by `alpha / rank`. The low-rank path of
`attn_vec_einsum` sums over the heads after `a` and again after `b`, so that every head gets the sum
of all `b`.

Source: Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Shaped

from taskcond.checkpoint.open import Checkpoint
from taskcond.checkpoint.storage.boxes import Box, Shape
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf, read_leaf

_KEPT = 4  # leaves whose factors stay in memory
_ATTENTION, _FEED_FORWARD = ("/lora_a", "/lora_b"), ("_lora_a", "_lora_b")


class FoldedLora:
    """A checkpoint with its low-rank products added to the weights beside them.

    Attributes:
        leaves: The leaves of the checkpoint without the low-rank ones.

    Args:
        checkpoint: A LoRA fine-tune.
        alpha: The `alpha` of its configuration; `"rank"` if it is the rank.

    Raises:
        CheckpointError: There are no low-rank leaves, or some lack their weight or other half.
    """

    def __init__(self, checkpoint: Checkpoint, alpha: float | str = "rank"):
        self._checkpoint = checkpoint
        self._alpha = alpha
        self._halves = _find(checkpoint)
        halves = {name for pair in self._halves.values() for name in pair}
        self.leaves: dict[str, Leaf] = {
            path: leaf for path, leaf in checkpoint.leaves.items() if path not in halves
        }
        self._factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """Reads a part of a folded leaf."""
        value = self._checkpoint.read(path, box)
        if path not in self._halves:
            return value
        factors = self._factors.get(path)
        if factors is None:
            factors = self._read_factors(path)
            # Each thread reads one leaf, so the factors of the last few leaves are enough.
            self._factors = dict([*self._factors.items(), (path, factors)][-_KEPT:])
        a, b = factors
        outer, (rows, columns) = box[:-2], box[-2:]
        change = a[(*outer, rows)] @ b[(*outer, slice(None), columns)]
        return (value.astype(np.float32) + change).astype(value.dtype)

    def _read_factors(
        self, path: str
    ) -> tuple[Float[np.ndarray, "... rank"], Float[np.ndarray, "... rank out"]]:
        a, b = (read_leaf(self._checkpoint, x).astype(np.float32) for x in self._halves[path])
        if self._halves[path][0].endswith(_ATTENTION[0]) and self._alpha != "rank":
            a = a * np.float32(float(self._alpha) / a.shape[-1])
        if path.split("/")[-2].startswith("attn_vec_einsum"):
            b = np.broadcast_to(b.sum(-3, keepdims=True), b.shape)
        return a, b


def has_lora(paths: Iterable[str]) -> bool:
    """Returns whether there are low-rank leaves among these paths."""
    return any(path.endswith((*_ATTENTION, *_FEED_FORWARD)) for path in paths)


def _find(checkpoint: Checkpoint) -> dict[str, tuple[str, str]]:
    """Returns `{weight: (a, b)}`."""
    leaves, found, alone = checkpoint.leaves, {}, []
    for path in leaves:
        for (a, b), weight in ((_ATTENTION, "/w"), (_FEED_FORWARD, "")):
            if not path.endswith((a, b)):
                continue
            stem = path[: -len(a)]
            if all(name in leaves for name in (stem + weight, stem + a, stem + b)):
                found[stem + weight] = stem + a, stem + b
            else:
                alone.append(path)
    problems = [f"low-rank leaves without their weight or other half: {alone}"] if alone else []
    odd = {
        weight: [list(leaves[path].shape) for path in (weight, a, b)]
        for weight, (a, b) in found.items()
        if not _fits(*(leaves[path].shape for path in (weight, a, b)))
    }
    if odd:
        problems.append(f"shapes that do not fit (weight, a, b): {odd}")
    if problems or not found:
        problem = "; ".join(problems) or "it has no low-rank leaves; remove lora_alpha"
        raise CheckpointError(f"{checkpoint.path}: {problem}")
    return found


def _fits(weight: Shape, a: Shape, b: Shape) -> bool:
    """Returns whether `a` is `[..., in, rank]` and `b` is `[..., rank, out]`."""
    return (*a[:-1], b[-1]) == weight and (*b[:-2], a[-1]) == (*weight[:-2], b[-2])
