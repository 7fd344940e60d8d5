"""The rotary positions of a sequence: time, row and column of each token (arXiv 2409.12191, §2.1).

    text text | image of 2 × 2 tokens | text
      0    1  |  2  2  2  2           |  4        time
      0    1  |  2  2  3  3           |  4        row
      0    1  |  2  3  2  3           |  4        column

The same as the published ``get_rope_index``, which only tells samples apart that have a row each, and asks
for numbers of each tensor many times: here they are counted while the batch is still on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_positions(mm_token_type_ids: Tensor, image_grid_thw: Tensor, merge_size: int) -> Tensor:
    """Positions of one sample's tokens.

    Args:
        mm_token_type_ids: ``(tokens,)`` int64, 1 at image tokens.
        image_grid_thw: ``(images, 3)`` int64, frames, rows and columns of patches of its images in order.
        merge_size: side of a block of patches that become one token.

    Returns:
        ``(3, tokens)`` int64: time, row, column.

    Example:
        >>> rope_positions(torch.tensor([0, 0, 1, 1, 0]), torch.tensor([[1, 2, 4]]), 2).tolist()
        [[0, 1, 2, 2, 4], [0, 1, 2, 2, 4], [0, 1, 2, 3, 4]]
    """
    pieces, done, position = [], 0, 0
    is_image = mm_token_type_ids.bool()
    for frames, rows, columns in image_grid_thw.tolist():
        first = done + int(is_image[done:].int().argmax())
        pieces.append(torch.arange(position, position + first - done).expand(3, -1))
        position += first - done
        grid = (frames, rows // merge_size, columns // merge_size)
        pieces.append(position + torch.cartesian_prod(*(torch.arange(size) for size in grid)).T)
        position += max(grid[1:])
        done = first + grid[0] * grid[1] * grid[2]
    pieces.append(torch.arange(position, position + len(mm_token_type_ids) - done).expand(3, -1))
    return torch.cat(pieces, dim=1)
