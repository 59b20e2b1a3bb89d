"""Collect what calibration needs of one linear layer's input while pictures and prompts pass by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .histogram import ActivationStats

MAX_SAMPLE_ROWS = 2048
ROW_SEED = 0


class LayerInput:
    """Statistics over all rows, some rows as they are, and second moments where they are needed.

    Attributes:
        stats: over all rows.
        low, high: float32[K], extremes of each channel over all rows.
    """

    def __init__(self, num_channels: int, num_inputs: int, *, with_moments: bool) -> None:
        """Of nothing yet.

        Args:
            num_channels: K.
            num_inputs: pictures or prompts that will come; each gives an equal share of the rows.
            with_moments: keep X^T X, K^2 numbers, which gptq needs.
        """
        self.stats = ActivationStats(num_channels)
        self.low = np.full(num_channels, np.inf, np.float32)
        self.high = np.full(num_channels, -np.inf, np.float32)
        self._quota = max(1, -(-MAX_SAMPLE_ROWS // max(1, num_inputs)))
        self._rows: list[NDArray[np.float32]] = []
        self._random = np.random.default_rng(ROW_SEED)
        # Moments are taken about the first input's mean: channels that hardly move around a large
        # value would lose their variance to rounding.
        self._origin = np.zeros(num_channels, np.float32)
        self._sums = np.zeros(num_channels, np.float64)
        self._moments: NDArray[np.float32] | None = None
        if with_moments:
            self._moments = np.zeros((num_channels, num_channels), np.float32)

    def update(self, x: NDArray[np.float32]) -> None:
        """Add the rows of one picture or prompt.

        Args:
            x: float32[rows, K].

        Raises:
            ValueError: a value that is not finite.
        """
        self.stats.update(x)
        np.minimum(self.low, x.min(axis=0), out=self.low)
        np.maximum(self.high, x.max(axis=0), out=self.high)
        if not self._rows:
            self._origin = x.mean(axis=0, dtype=np.float32)
        centred = x - self._origin
        self._sums += centred.sum(axis=0, dtype=np.float64)
        count = min(self._quota, len(x))
        chosen = np.sort(self._random.choice(len(x), count, replace=False))
        self._rows.append(x[chosen])
        if self._moments is not None:
            self._moments += centred.T @ centred

    @property
    def rows(self) -> NDArray[np.float32]:
        """float32[R, K], the sampled rows."""
        return np.concatenate(self._rows)

    def moments(
        self,
        scales: NDArray[np.float32] | None = None,
        shift: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """The mean of y^T y over all rows, y = x / scales - shift.

        Args:
            scales: float32[K]; None: ones.
            shift: float32[K]; None: zeros.

        Returns:
            float32[K, K].
        """
        assert self._moments is not None  # asked for where it is made
        count = max(1, self.stats.count)
        moments = self._moments / np.float32(count)
        mean = (self._sums / count).astype(np.float32)
        divisor = np.ones_like(mean) if scales is None else scales
        moments /= divisor
        moments /= divisor[:, None]
        # y = (x - origin) / scales + offset
        offset = self._origin / divisor - (np.float32(0) if shift is None else shift)
        cross = np.outer(offset, mean / divisor + offset / 2)
        moments += cross
        moments += cross.T
        return moments
