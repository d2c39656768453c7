"""Small pictures that were saved large, each pixel as a block of one colour."""

import math

import numpy as np

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
LINES = 256  # are looked at, of large pictures
MIN_SIDE = 4  # px of the small picture: fewer blocks are a drawing
DENSITY = 0.5  # of the edges between rows and columns of blocks are seen: drawings show few
MIN_LOSSY_BLOCK = 4  # px
# Of pictures saved as JPEG with fine steps. Measured: mosaics at quality 90 have shares over 0.94
# and contrasts over 30; photographs, plain, blurred or with black bars, do not pass both at
# quality 65 or more; coarser steps make blocks of their own.
SHARE = 0.92  # of the squared steps between pixels that lie between blocks, at least
CONTRAST = 8.0  # squared steps between blocks over those within, of the median line, at least


def block_size(levels: np.ndarray, *, lossy: bool) -> int:
    """Side in px of the blocks of one colour that a picture consists of.

    Args:
        levels: (H, W, 3) float32 in [0, 255].
        lossy: whether a JPEG's fine steps changed the blocks a little.

    Returns:
        1 for an ordinary picture, and for one of a single colour.
    """
    exact = _exact_block(levels)
    return _lossy_block(levels) if exact == 1 and lossy else exact


def shrink(levels: np.ndarray, block: int) -> np.ndarray:
    """The small picture: each block's mean, near its middle; the last blocks may be cut."""
    inset = block // 4
    height, width, channels = levels.shape
    rows, columns = -(-height // block), -(-width // block)
    missing = (rows * block - height, columns * block - width)
    blocks = np.pad(levels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    blocks = blocks.reshape(rows, block, columns, block, channels)
    return blocks[:, inset : block - inset, :, inset : block - inset].mean(axis=(1, 3))


def _exact_block(levels: np.ndarray) -> int:
    """The largest block of exactly equal pixels."""
    height, width = levels.shape[:2]
    sampled = levels[:: max(height // 8, 1)]  # enough to let most pictures go
    if math.gcd(*_columns_that_begin(sampled)) == 1:
        return 1
    begins = _columns_that_begin(levels) + _columns_that_begin(levels.swapaxes(0, 1))
    block = math.gcd(*begins)
    if block < 2 or -(-min(height, width) // block) < MIN_SIDE:
        return 1
    n_edges = -(-height // block) + -(-width // block) - 2
    return block if len(begins) >= DENSITY * n_edges else 1


def _columns_that_begin(levels: np.ndarray) -> list[int]:
    """Indices of the columns that differ from the one before."""
    differ = (levels[:, 1:] != levels[:, :-1]).any(axis=(0, 2))
    return (np.flatnonzero(differ) + 1).tolist()


def _lossy_block(levels: np.ndarray) -> int:
    """The largest block that explains nearly all of what changes between pixels."""
    height, width = levels.shape[:2]
    sides, most = math.gcd(height, width), min(height, width) // MIN_SIDE
    candidates = [b for b in range(most, MIN_LOSSY_BLOCK - 1, -1) if sides % b == 0]
    steps = [_squared_steps(levels), _squared_steps(levels.swapaxes(0, 1))]
    return next((block for block in candidates if _explains(steps, block)), 1)


def _squared_steps(levels: np.ndarray) -> np.ndarray:
    """(W - 1,) mean squared differences between neighbouring columns, over some of the rows."""
    rows = levels[:: max(len(levels) // LINES, 1)]
    return np.square(np.diff(rows @ LUMINANCE, axis=1)).mean(axis=0, dtype=np.float64)


def _explains(steps: list[np.ndarray], block: int) -> bool:
    """Whether nearly all steps lie between blocks, and at most of their edges."""
    edges = [line[block - 1 :: block] for line in steps]
    inner = [np.delete(line, np.s_[block - 1 :: block]) for line in steps]
    share = sum(line.sum() for line in edges) / max(sum(line.sum() for line in steps), 1e-9)
    contrasts = [np.median(e) / max(np.median(i), 1e-9) for e, i in zip(edges, inner, strict=True)]
    return share >= SHARE and min(contrasts) >= CONTRAST
