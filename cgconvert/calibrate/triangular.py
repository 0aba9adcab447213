"""The triangular factor of an inverse, in the memory of one matrix.

Of a matrix of 24576 columns each copy is gigabytes, and torch's own functions, one after the other,
hold four. Blocks are small enough for them, the rest is matrix products.
"""

from __future__ import annotations

import torch

__all__ = ["inverse_factor"]

BLOCK = 2048


def inverse_factor(matrix: torch.Tensor) -> torch.Tensor:
    """The upper triangular F, F^T F = matrix^-1, of a positive definite matrix [n, n].

    With matrix = U U^T, U upper triangular, F is the inverse of U. Raises torch.linalg.LinAlgError
    where the matrix is not positive definite.
    """
    f = matrix.clone()
    n = len(f)
    blocks = [slice(first, min(first + BLOCK, n)) for first in range(0, n, BLOCK)]
    for some in reversed(blocks):  # f becomes U, from its last columns on
        to, after = slice(0, some.stop), slice(some.stop, n)
        f[to, some].addmm_(f[to, after], f[some, after].t(), alpha=-1)
        corner = torch.linalg.cholesky(f[some, some].flip(0, 1)).flip(0, 1)
        above = slice(0, some.start)
        f[above, some] = torch.linalg.solve_triangular(
            corner.t(), f[above, some], upper=False, left=False
        )
        f[some, some] = corner
    f.triu_()
    for some in blocks:  # f becomes the inverse of U, from its first columns on
        corner = f[some, some]
        corner = torch.linalg.solve_triangular(corner, torch.eye(len(corner)).to(f), upper=True)
        above = slice(0, some.start)
        f[above, some] = f[above, above] @ (f[above, some] @ corner).neg_()
        f[some, some] = corner
    return f
