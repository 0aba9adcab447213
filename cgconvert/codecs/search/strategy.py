"""What a search is: an object that finds the parameters of blocks for a layout."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from cgconvert.codecs.block_layout import BlockLayout, BlockParams

__all__ = ["Search"]


class Search(ABC):
    """Looks for the parameters of least squared error, as far as its settings say.

    Searches hold settings only, no state, so that one object serves every process.
    """

    @abstractmethod
    def fit(self, x: torch.Tensor, weight: torch.Tensor | None, layout: BlockLayout) -> BlockParams:
        """The parameters of n blocks.

        Args:
            x: the weights of the blocks, float32 [sub_blocks, sub_block_size, n].
            weight: how much each squared error counts, of x's shape; None counts all alike.
            layout: the range of codes, and the bits of scales.

        Raises InputError where a weight is not finite or far beyond what a block can hold.
        """
