"""Stops a run that goes wrong, and restores the best weights."""

import math
import warnings
from typing import NamedTuple

import numpy as np

from keras_reward.batches import batches_of
from keras_reward.callbacks.steps import StepCallback
from keras_reward.compiled import kept
from keras_reward.evaluation.probes import Greedy
from keras_reward.nests import pad_rows, rows_of

TRY = {
    "fall": "a learning rate 10 times lower, a warm-up, or a `KL` term; "
    "more samples (`num_samples`) if the reward is noisy",
    "monitor": "a reward that includes what fell (`reward + weight * monitor`), or "
    "a `KL` term: the model found a way to earn the reward that was "
    "not meant",
    "entropy": "an `Entropy` term, a lower learning rate, or a `KL` term",
    "no_signal": "more samples (`num_samples`), a higher `temperature`, or a reward "
    "that tells more outputs apart; if the reward is at its maximum, the work is done",
}


# What a guard remembers.
STATE = (
    *("fired", "best", "scale", "best_step", "best_value", "best_weights"),
    *("above_floor", "seen", "warned"),
)


class Firing(NamedTuple):
    """What a `RewardGuard` found.

    Attributes:
        rule: `"fall"`, `"monitor"`, `"entropy"` or `"no_signal"`.
        name: name of the quantity in the logs.
        value: its value.
        limit: the limit that it should have stayed above (`no_signal`: below).
        step, epoch: when it was found: number of steps since `fit` began; epoch from 0.
        restored_step: the step whose weights were restored.
        message: all of this in words, and what to try.
    """

    rule: str
    name: str
    value: float
    limit: float
    step: int
    epoch: int
    restored_step: int
    message: str


class RewardGuard(StepCallback):
    """Stops training and restores the best weights when tuning goes wrong.

    There are four rules:

    - `fall`: the greedy validation reward falls by more than `tolerance` from its best.
    - `monitor`: another monitored reward does, typically one of weight 0: a sign that
      the model exploits the reward.
    - `entropy`: the policy's entropy falls below `entropy_floor`, after being above it.
    - `no_signal`: for most inputs, all samples have the same reward, so nothing is
      learned.

    A value that is not finite breaks its rule. The best weights are those with the
    highest validation reward of all earlier checks. The guard warns, and stores what it
    found in `fired`. The optimizer's state is not restored: `compile` again to
    continue.

    The rules are checked after each epoch; with `validation_data` also before the first
    step, so that the initial weights are restored if nothing better was found; with
    `every_steps` also within epochs. A learning rate that is far too high ruins a model
    within one epoch, and only these two options find it in time.

    Args:
        monitors: names in the logs. The first one decides which weights are best.
            Default `("val_reward",)`. The name of a reward of weight 0 has the prefix
            `"val_"` too.
        tolerance: how far a monitor may fall from its best, as a share of its largest
            magnitude so far. Default 0.1.
        entropy_floor: minimum entropy in nats per position. Default 0.001. None
            disables the rule.
        no_signal_share: the largest allowed share of inputs whose samples all have the
            same reward. Default 0.95. None disables the rule.
        validation_data: `(x, y)` arrays or nests of them, or an iterable of batches.
            The guard then computes the monitors itself, from greedy outputs. Default
            None: it takes them from the logs of `fit(validation_data=...)`.
        every_steps: also check after this many steps. Default None.
        batch_size: batch size of `validation_data` if it is arrays. Default 32.

    Example:

    ```python
    import keras
    import numpy as np
    from keras import ops
    from keras_reward import RewardTuning
    from keras_reward.callbacks import RewardGuard

    def value(y_true, y_pred):
        return ops.cast(y_pred, "float32")

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    tuned = RewardTuning(model, reward=value, num_samples=4, seed=0)
    tuned.compile(keras.optimizers.Adam(0.01))
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    guard = RewardGuard(validation_data=(x, None), every_steps=1)
    tuned.fit(x, epochs=2, callbacks=[guard], verbose=0)
    guard.fired  # None: nothing went wrong
    guard.best_value
    ```
    """

    def __init__(
        self,
        monitors=("val_reward",),
        tolerance=0.1,
        entropy_floor=0.001,
        no_signal_share=0.95,
        validation_data=None,
        every_steps=None,
        batch_size=32,
    ):
        super().__init__(every_steps)
        self.monitors = (monitors,) if isinstance(monitors, str) else tuple(monitors)
        if not self.monitors or not tolerance > 0:
            raise ValueError(
                "`monitors` must name at least one quantity, and `tolerance` must be "
                f"positive. Received: monitors={monitors!r}, tolerance={tolerance}"
            )
        self.tolerance = tolerance
        self.entropy_floor = entropy_floor
        self.no_signal_share = no_signal_share
        self.validation_data = validation_data
        self.batch_size = batch_size

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.fired = None
        self.best = {}  # of each monitor
        self.scale = {}  # the largest magnitude of each monitor
        self.best_step, self.best_value = 0, math.nan
        self.best_weights = self.model.get_weights()
        self.above_floor = False
        self.seen = {}  # at the last check: means over the epoch, number of batches
        self.warned = False
        if self.validation_data is not None:
            self.greedy = kept(self.model, Greedy)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self.seen = {}
        if self.validation_data is not None and not self.best:  # of the initial weights
            self.check_monitors(self.validate())

    def get_state(self):
        """What a `Checkpoint` keeps: the best so far, with its weights."""
        return {**super().get_state(), **{name: getattr(self, name) for name in STATE}}

    def set_state(self, state):
        """Goes on from what `get_state` returned."""
        super().set_state(state)
        for name in STATE:
            setattr(self, name, state[name])
        self.fired = self.fired and Firing(*self.fired)

    def on_train_batch_end(self, batch, logs=None):
        if not self.advance(batch) or self.fired:
            return
        self.check_policy(self.since_last_check(logs or {}, batch + 1))
        if self.validation_data is not None and not self.fired:
            self.model.keep_weights()
            self.check_monitors(self.validate())

    def on_epoch_end(self, epoch, logs=None):
        if self.fired:
            return
        logs = logs or {}
        self.check_policy(logs)
        if self.fired:
            return
        if self.validation_data is not None:
            self.check_monitors(self.validate())
        elif self.monitors[0] in logs:
            self.check_monitors(logs)
        elif not self.best and not self.warned:
            self.warned = True
            warnings.warn(
                f"RewardGuard does not find {self.monitors[0]!r} in the logs, so it "
                "cannot see the reward fall. Pass `validation_data` to `fit` or to "
                f"the guard. Received: {', '.join(sorted(logs))}",
                stacklevel=2,
            )

    def since_last_check(self, logs, batches):
        """Means of `entropy` and `no_signal` over the steps since the last check.

        The logs contain means over the epoch so far, which would hide a collapse.
        """
        recent, before = {}, self.seen.get("batches", 0)
        for name in ("entropy", "no_signal"):
            if name in logs:
                mean, earlier = float(logs[name]), self.seen.get(name, 0.0)
                recent[name] = (mean * batches - earlier * before) / (batches - before)
                self.seen[name] = mean
        self.seen["batches"] = batches
        return recent

    def validate(self):
        """Mean reward and components of the greedy outputs: a dict."""
        totals, size = {}, None
        for x, y in batches_of(self.validation_data, self.batch_size)[1]:
            rows = rows_of((x,))
            size = max(size or rows, rows)
            rewards = self.greedy.run(*pad_rows((x, y), size))["rewards"]
            for name, values in rewards.items():
                totals.setdefault(f"val_{name}", []).extend(values[:rows])
        return {name: mean_of_finite(values) for name, values in totals.items()}

    def check_policy(self, logs):
        """Checks the rules about the samples of training."""
        entropy, floor = logs.get("entropy"), self.entropy_floor
        if floor is not None and entropy is not None:
            if math.isnan(entropy) or (self.above_floor and entropy < floor):
                return self.fire("entropy", "entropy", entropy, floor)
            self.above_floor = self.above_floor or entropy >= floor
        share, most = logs.get("no_signal"), self.no_signal_share
        if most is not None and share is not None and share > most:
            self.fire("no_signal", "no_signal", share, most)

    def check_monitors(self, logs):
        """Checks the rules about validation; keeps the weights if they are the best."""
        for name in self.monitors:
            if name not in logs:
                raise ValueError(
                    "`monitors` must be names in the logs. "
                    f"Known: {', '.join(sorted(logs))}. Received: {name!r}"
                )
            value = float(logs[name])
            if name in self.best:
                limit = self.best[name] - self.tolerance * self.scale[name]
                if not value >= limit:
                    rule = "fall" if name == self.monitors[0] else "monitor"
                    return self.fire(rule, name, value, limit)
        for name in self.monitors:
            value = float(logs[name])
            self.scale[name] = max(self.scale.get(name, 0.0), abs(value))
            if name == self.monitors[0] and not value <= self.best.get(name, -math.inf):
                self.best_value, self.best_step = value, self.step
                self.best_weights = self.model.get_weights()
            self.best[name] = max(self.best.get(name, -math.inf), value)

    def fire(self, rule, name, value, limit):
        """Stops training, restores the best weights, and warns."""
        self.model.keep_weights()
        self.model.set_weights(self.best_weights)
        self.model.stop_training = True
        side = "above" if rule == "no_signal" else "below"
        best = f", from a best of {self.best[name]:.4g}" if name in self.best else ""
        message = (
            f"RewardGuard stopped at step {self.step} (epoch {self.epoch + 1}), rule "
            f"{rule!r}: {name} is {value:.4g}, {side} {limit:.4g}{best}. The model has "
            f"the weights of step {self.best_step} again. Try {TRY[rule]}."
        )
        self.fired = Firing(
            rule, name, value, limit, self.step, self.epoch, self.best_step, message
        )
        warnings.warn(message, stacklevel=2)


def mean_of_finite(values):
    """Mean of the finite values, NaN if there is none."""
    values = np.asarray(values, "float64")
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan
