"""Counting training steps over all epochs."""

import keras


class StepCallback(keras.callbacks.Callback):
    """Base class: counts the training steps, and tells when to act.

    Attributes:
        step: number of training steps since `fit` began.
        epoch: the current epoch, from 0.
    """

    def __init__(self, every_steps=None):
        super().__init__()
        if every_steps is not None and (
            not isinstance(every_steps, int) or every_steps < 1
        ):
            raise ValueError(
                "`every_steps` must be a positive int or None. "
                f"Received: every_steps={every_steps!r}"
            )
        self.every_steps = every_steps
        self.step = self.epoch = 0
        self._first = 0  # steps before the current epoch

    def on_train_begin(self, logs=None):
        self.step = self._first = 0

    def get_state(self):
        """What a `Checkpoint` keeps."""
        return {"step": self.step, "epoch": self.epoch, "first": self._first}

    def set_state(self, state):
        """Goes on from what `get_state` returned."""
        self.step, self.epoch = state["step"], state["epoch"]
        self._first = state["first"]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self._first = epoch, self.step

    def advance(self, batch):
        """Counts the steps up to `batch`; returns whether `every_steps` are over.

        With `steps_per_execution`, several steps end at once.
        """
        before, self.step = self.step, self._first + batch + 1
        every = self.every_steps
        return every is not None and self.step // every > before // every
