"""Checkpoints from which a run goes on as if it had never been interrupted."""

import contextlib
import pathlib
import signal
import threading
import time
import warnings
from typing import NamedTuple

import keras

from keras_reward.callbacks import checkpoint_files, run_state
from keras_reward.callbacks.background import Background


class Resumed(NamedTuple):
    """A checkpoint that a run goes on from.

    Attributes:
        path: its folder.
        step: number of steps before it.
        epoch, batch: the next epoch and the next batch in it, from 0.
        order: key of the order of the data.
        stopped: `epochs` of a run that has ended, or None.
        arrays, about: as passed to `checkpoint_files.write`.
    """

    path: pathlib.Path
    step: int
    epoch: int
    batch: int
    order: tuple
    stopped: int
    arrays: list
    about: dict


class Checkpoint(keras.callbacks.Callback):
    """Writes checkpoints, from which the same `fit` goes on when it is called again.

    Call the script again after it was interrupted, in whatever way, and
    `RewardTuning.fit` with this callback goes on at the batch of the newest checkpoint.
    The weights at the end are those that the run would have had without interruption,
    bit for bit, on the same devices, with the backend's deterministic mode on. Without
    it they differ as much as two runs do.

    A checkpoint has all that a run is: weights, the state of the optimizer, all random
    states (also that of dropout in the tuned model), the state of the baseline, the
    reward and the terms, metrics, epoch and batch, the order of the data, the history,
    and the state of callbacks that have one: `RewardGuard`, `SampleLogger`, Keras's
    `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint`, and your own that have
    `get_state()`, which returns a nest of dicts, lists, arrays, numbers and strings,
    and `set_state(state)`, which is called after `on_train_begin`.

    The data go on at their batch if they are arrays or a `keras.utils.PyDataset`. Its
    `set_epoch(epoch)`, if it has one, is called before each epoch: let a dataset that
    shuffles take its order from there. Of a generator, a `tf.data.Dataset` and other
    iterables, the first batches are passed over with `fixed_order=True`; else the
    interrupted epoch begins anew, with the weights of the checkpoint, and a warning
    says so.

    While a step runs, the values of the last checkpoint are written in another thread.
    A checkpoint gets its name when all of it is on disk, so that a kill or a full disk
    at any time leaves the older ones as they are. If one cannot be written, a warning
    says so, training goes on, and the next one is tried. One that is broken is skipped
    with a warning.

    SIGTERM, with which machines are taken back, lets the current step end (or the
    validation, if one runs), writes a checkpoint, and ends the process by
    `SystemExit(143)`. Only if `fit` runs in the main thread.

    A run that has ended, also by `EarlyStopping` or a guard, does nothing when it is
    called again with the same `epochs`, and goes on with more. `initial_epoch` counts
    where there is no checkpoint. What is in the checkpoint replaces what the script has
    set, such as another learning rate. Use one folder for each run.

    Args:
        folder: where to write, a folder for each checkpoint, `step_00000120`; created
            if it does not exist.
        every_steps: int, write after this many steps.
        every_seconds: write after this many seconds. Default, without both: after each
            epoch. The end of a run is always written.
        keep: how many of the newest checkpoints to keep. Default 3.
        fixed_order: whether data that cannot be started at a batch give the same
            batches in each run and each epoch. Default False.

    Attributes:
        resumed_from: path of the checkpoint that the last `fit` went on from, or None.
        newest: path of the newest checkpoint, or None.

    Raises:
        ValueError: for numbers that are not positive, and for `every_steps` and
            `every_seconds` together. In `fit`: if the checkpoint is of another model,
            or none in the folder can be read.

    Example:

    ```python
    import keras
    import numpy as np
    from keras import ops
    from keras_reward import RewardTuning
    from keras_reward.callbacks import Checkpoint

    def value(y_true, y_pred):
        return ops.cast(y_pred, "float32")

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    tuned = RewardTuning(model, reward=value, seed=0)
    tuned.compile(keras.optimizers.Adam(0.01))
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    tuned.fit(x, epochs=2, callbacks=[Checkpoint("run", every_steps=100)], verbose=0)
    # The same again, after an interruption or for more epochs:
    tuned.fit(x, epochs=4, callbacks=[Checkpoint("run", every_steps=100)], verbose=0)
    ```
    """

    # What is due after a step is done before the next one. A callback with
    # `on_train_batch_end` would make Keras wait for the end of each step.

    def __init__(
        self, folder, every_steps=None, every_seconds=None, keep=3, fixed_order=False
    ):
        super().__init__()
        if every_steps is not None and every_seconds is not None:
            raise ValueError(
                "Checkpoints are written every so many steps or seconds, not both. "
                f"Received: every_steps={every_steps}, every_seconds={every_seconds}"
            )
        for name, given in (("every_steps", every_steps), ("keep", keep)):
            if given is not None and (not isinstance(given, int) or given < 1):
                raise ValueError(
                    f"`{name}` must be a positive int. Received: {name}={given!r}"
                )
        if keep is None or (every_seconds is not None and not every_seconds > 0):
            raise ValueError(
                "`keep` and `every_seconds` must be positive. "
                f"Received: keep={keep}, every_seconds={every_seconds!r}"
            )
        self.folder = pathlib.Path(folder)
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.keep = keep
        self.fixed_order = fixed_order
        self.background = Background()
        self.resumed_from = self.newest = None
        self.companions = None  # the other callbacks, while `fit` runs

    # What `RewardTuning.fit` calls, before and after Keras's.

    def find(self):
        """The newest checkpoint in the folder: a `Resumed`, or None."""
        found = checkpoint_files.newest_readable(self.folder)
        self.resumed_from = self.newest = None if found is None else found[0]
        if found is None:
            return None
        path, arrays, about = found
        run = dict(about["run"])
        run["order"] = tuple(run["order"])
        return Resumed(path, **run, arrays=arrays, about=about)

    @contextlib.contextmanager
    def running(self, callbacks, order, resumed, batch):
        """A context for `fit`, in which checkpoints are written.

        Args:
            callbacks: list of the other callbacks.
            order: key of the order of the data.
            resumed: a `Resumed`, or None.
            batch: with which its epoch begins.
        """
        self.companions, self.order = callbacks, order
        self.resumed, self.first_batch = resumed, batch
        self.step = self.saved_step = 0 if resumed is None else resumed.step
        self.saved_at = time.monotonic()
        self.signalled = False
        try:
            with self.terminated():
                yield
            if self.signalled:  # after the last step
                self.end()
        finally:
            self.tell(self.background.wait())
            self.companions = self.resumed = None

    @contextlib.contextmanager
    def terminated(self):
        """A context in which SIGTERM is noted."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number, frame):
            self.signalled = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    # Events of `fit`. This callback is the last one in the list.

    def on_train_begin(self, logs=None):
        if self.companions is None:
            raise ValueError(
                "Checkpoint works with `RewardTuning.fit`, which starts the data where "
                "they were. Use `keras.callbacks.BackupAndRestore` for other models. "
                f"Received: {type(self.model).__name__}"
            )
        if self.model.number_of_processes() > 1:
            raise NotImplementedError(
                "Checkpoint writes runs of one process. "
                f"Received: {self.model.number_of_processes()} processes"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint_files.discard_old(self.folder, self.keep)
        self.fixed = run_state.checksum_of_fixed(self.model)
        if self.resumed is not None:
            run_state.check_built(self.model)
            self.restore("weights", "optimizer")
            run_state.check_fixed(self.resumed.about["fixed"], self.fixed)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.batch = epoch, 0
        self.first_step = self.step
        if self.first_batch:
            self.first_step -= self.first_batch
        else:
            self.resumed = None

    def restore(self, *groups):
        about, arrays = self.resumed.about, self.resumed.arrays
        run_state.restore(self.model, self.companions, arrays, about["state"], groups)

    def on_train_batch_begin(self, batch, logs=None):
        if self.resumed is not None:
            # Once more: of an epoch that goes on, its beginning is not to be seen. What
            # reads the data may have drawn random numbers.
            self.restore("weights", "optimizer", "metrics")
            self.resumed, self.first_batch = None, 0
        self.batch, self.step = batch, self.first_step + batch
        self.tell(self.background.failure())
        if self.signalled or (self.is_due() and not self.every_epoch):
            self.save(self.epoch, batch)

    def on_epoch_end(self, epoch, logs=None):
        # Keras tells a callback that a batch has begun, of several at once the first.
        steps = self.batch + self.model.steps_per_execution
        steps = min(steps, self.params.get("steps") or steps)
        self.step = self.first_step + steps
        ends = self.model.stop_training or epoch + 1 >= self.params["epochs"]
        if self.signalled or self.every_epoch or ends or self.is_due():
            self.save(epoch + 1, 0, self.params["epochs"] if ends else None)

    @property
    def every_epoch(self):
        """Whether checkpoints are written after epochs alone."""
        return self.every_steps is None and self.every_seconds is None

    def is_due(self):
        """Whether enough steps or seconds have passed since the last one."""
        if self.every_seconds is not None:
            return time.monotonic() - self.saved_at >= self.every_seconds
        every = self.every_steps or 1
        return self.step // every > self.saved_step // every

    def save(self, epoch, batch, stopped=None):
        """Writes a checkpoint in another thread; ends the process after SIGTERM.

        Args:
            epoch, batch: what comes next.
            stopped: `epochs`, if the run ends here.
        """
        if self.step > self.saved_step or stopped is not None:
            self.model.keep_weights()
            arrays, state = run_state.collect(self.model, self.companions)
            run = {"step": self.step, "epoch": epoch, "batch": batch}
            run |= {"order": self.order, "stopped": stopped}
            about = {"run": run, "state": state, "fixed": self.fixed}
            self.tell(self.background.start(self.write, self.step, arrays, about))
            self.saved_step, self.saved_at = self.step, time.monotonic()
        if self.signalled:
            self.end()

    def end(self):
        """Ends the process, as after SIGTERM."""
        self.tell(self.background.wait())
        raise SystemExit(128 + signal.SIGTERM)

    def write(self, step, arrays, about):
        self.newest = checkpoint_files.write(self.folder, step, arrays, about)
        checkpoint_files.discard_old(self.folder, self.keep)

    def tell(self, error):
        """Warns of a checkpoint that could not be written."""
        if error is not None:
            warnings.warn(
                f"A checkpoint could not be written to {self.folder}. Training goes "
                "on, older checkpoints are kept, and the next one will be tried. "
                f"Received: {type(error).__name__}: {error}",
                stacklevel=2,
            )
