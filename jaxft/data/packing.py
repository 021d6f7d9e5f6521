"""Examples laid into rows of one width, several to a row where they fit.

N groups, E examples a group, R rows, M examples a row.
"""

import numpy as np

GROUP = 1024
"""Examples of a data set that `pack_all` lays out together."""


def first_fit(lengths_NE: np.ndarray, width: int) -> np.ndarray:
    """int32 [N, R, M]: which of a group's examples each row holds, -1 where there is none.

    Each group by itself, the longest first, each into the first row with room; a length of 0 is no
    example. All groups get as many rows as the fullest needs. Source: Johnson 1973, first-fit
    decreasing.
    """
    n, size = lengths_NE.shape
    order_NE = np.argsort(-lengths_NE, axis=1, kind="stable")
    sorted_NE = np.take_along_axis(lengths_NE, order_NE, axis=1)
    # First fit never leaves two rows half empty.
    most = int(min(size, 2 * lengths_NE.sum(1).max() // width + 1))
    free_NR = np.full((n, most), width)
    held_NR = np.zeros((n, most), int)
    groups = np.arange(n)
    placed = []
    for e in range(size):
        length_N = sorted_NE[:, e]
        row_N = (free_NR >= length_N[:, None]).argmax(1)
        real_N = length_N > 0
        placed.append((row_N, held_NR[groups, row_N].copy(), real_N))
        free_NR[groups, row_N] -= length_N
        held_NR[groups, row_N] += real_N
    rows, members = int((held_NR > 0).sum(1).max()), int(held_NR.max())
    packed_NRM = np.full((n, rows, members), -1, np.int32)
    for e, (row_N, slot_N, real_N) in enumerate(placed):
        packed_NRM[groups[real_N], row_N[real_N], slot_N[real_N]] = order_NE[real_N, e]
    return packed_NRM


def pack_all(lengths: np.ndarray, width: int, seed: int) -> np.ndarray:
    """int32 [R, M]: all examples of a data set in rows; which ones meet is drawn from the seed."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    padded = np.concatenate([order, np.full(-len(order) % GROUP, -1)]).reshape(-1, GROUP)
    lengths_NE = np.where(padded >= 0, lengths[padded], 0)
    packed_NRM = first_fit(lengths_NE, width)
    groups = np.arange(len(padded))[:, None, None]
    members_NRM = np.where(packed_NRM >= 0, padded[groups, packed_NRM], -1).astype(np.int32)
    rows = members_NRM.reshape(-1, members_NRM.shape[2])
    return rows[rows[:, 0] >= 0]
