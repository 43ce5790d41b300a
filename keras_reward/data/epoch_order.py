"""The order of a dataset, which follows from its seed and the epoch."""

import numpy as np

from keras_reward.batches import permutation


class EpochOrder:
    """Mixin for a `keras.utils.PyDataset` with attributes `shuffle` and `seed`."""

    _epoch = 0
    _known = None, None  # the last order, and what it follows from

    def set_epoch(self, epoch):
        """Makes the batches those of an epoch.

        `RewardTuning.fit` calls it before each one. Other models than a `RewardTuning`
        go through the epochs one by one, from the first.

        Args:
            epoch: int, from 0.
        """
        self._epoch = epoch

    def on_epoch_end(self):
        # Not at the start of an epoch, when Keras has already started the workers.
        self.set_epoch(self._epoch + 1)

    def order(self, count):
        """Numbers from 0 to `count - 1` in the order of the epoch, `(count,)`."""
        if not self.shuffle:
            return np.arange(count)
        source = count, self.seed, self._epoch
        known, order = self._known
        if known != source:
            order = permutation(*source)
            self._known = source, order
        return order
