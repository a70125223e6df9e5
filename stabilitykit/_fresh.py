"""What comes from the batch without passing a weight: joined, cast, reshaped, scaled."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

_LOOKUPS = ("embedding", "embedding_bag")


class Fresh:
    """Tensors of the batch, and those that functions make of such alone.

    Numbers that the model brings along (buffers, what is made of nothing, rows of an embedding) may
    be among what a function is given; of these alone nothing fresh comes.

    Args:
        batch: its tensors.
        buffers: of the model.
    """

    def __init__(self, batch: Iterable[Tensor], buffers: Iterable[Tensor]) -> None:
        # The tensors are kept, as an id is unique only so long.
        self._seen = {id(t): (t, False) for t in buffers} | {id(t): (t, True) for t in batch}

    def __contains__(self, tensor: Tensor) -> bool:
        return self._seen.get(id(tensor), (tensor, False))[1]

    def follow(self, function: str, given: Iterable[Tensor], made: Iterable[Tensor]) -> None:
        """Note what a function has made.

        Examples:
            >>> import torch
            >>> x, weight = torch.ones(2, 3), torch.ones(3, 3)
            >>> double, product = 2 * x, x @ weight
            >>> fresh = Fresh([x], [])
            >>> fresh.follow("mul", [x], [double])
            >>> fresh.follow("matmul", [x, weight], [product])
            >>> double in fresh, product in fresh
            (True, False)
        """
        own = [self._seen.get(id(t)) for t in given]
        if function in _LOOKUPS:
            kept = False
        elif all(one is not None for one in own):
            kept = any(one is not None and one[1] for one in own)
        else:
            return
        self._seen |= {id(t): (t, kept) for t in made if id(t) not in self._seen}
