"""Where each patch of an image stands in the processor's flat order.

The processor flattens patches block by block, so that the four patches of one merged token are
neighbours; an image of 4 rows and 4 columns comes as

     0  1  4  5
     2  3  6  7
     8  9 12 13
    10 11 14 15
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def raster_to_flat(rows: int, columns: int, merge_size: int) -> IntArray:
    """Flat position of the patch at each raster position: ``(rows, columns)`` int64.

    ``merge_size`` is the side of a block of patches that become one token; rows and columns are multiples.

    Example:
        >>> raster_to_flat(2, 4, 2).tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    flat = np.arange(rows * columns, dtype=np.int64)
    blocks = flat.reshape(rows // merge_size, columns // merge_size, merge_size, merge_size)
    return blocks.transpose(0, 2, 1, 3).reshape(rows, columns)


def raster_to_token(rows: int, columns: int, merge_size: int) -> IntArray:
    """Merged token that the patch at each raster position belongs to: ``(rows, columns)`` int64.

    Example:
        >>> raster_to_token(2, 4, 2).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    return raster_to_flat(rows, columns, merge_size) // merge_size**2
