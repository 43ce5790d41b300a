"""Baselines: what the rewards of samples are compared with."""

import inspect
import math

import keras
from keras import ops

from keras_reward import advantages
from keras_reward.saved_objects import deserialized, entry, serialized
from keras_reward.symbolic import refuse_values


class Baseline(keras.layers.Layer):
    """Base class: turns the rewards of samples into their advantages.

    Subclass it and implement `advantages`. State, such as an average over batches, is
    a non-trainable weight that is made with `add_weight` in `__init__` and assigned at
    the end of `advantages`. It is saved with the tuner.

    Args:
        name: optional name.

    Attributes:
        min_samples: the fewest samples per input that it needs. Default 1.

    Example:

    ```python
    from keras import ops
    from keras_reward import Baseline

    class MedianBaseline(Baseline):
        min_samples = 3

        def advantages(self, rewards):
            return rewards - ops.median(rewards, axis=1, keepdims=True)

    MedianBaseline().advantages(ops.array([[1.0, 2.0, 6.0]]))  # [[-1.0, 0.0, 4.0]]
    ```
    """

    min_samples = 1

    def __init__(self, name=None, **kwargs):
        super().__init__(name=name, dtype="float32", **kwargs)
        self.built = True

    @property
    def uses_greedy(self):
        """Whether `advantages` takes an argument `greedy_rewards`."""
        return "greedy_rewards" in inspect.signature(self.advantages).parameters

    def advantages(self, rewards):
        """How much better than the baseline each sample did. Runs without gradient.

        Args:
            rewards: `(batch, samples)` float32, not finite where there is no reward.
            greedy_rewards: only if the signature has it: `(batch,)`, the rewards of
                the greedy outputs, which are then computed in each step.

        Returns:
            `(batch, samples)`, or one advantage for each position of the samples, as
            in `Likelihood`: `(batch, samples, ...)`. Values that are not finite count
            as 0.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `advantages(self, rewards)`."
        )

    def get_config(self):
        return {"name": self.name}


@keras.saving.register_keras_serializable(package="keras_reward")
class LeaveOneOutBaseline(Baseline):
    """The mean reward of the other samples, see `advantages.leave_one_out`.

    Example:

    ```python
    from keras_reward import LeaveOneOutBaseline

    LeaveOneOutBaseline().advantages([[1.0, 2.0, 6.0]])  # [[-3.0, -1.5, 4.5]]
    ```
    """

    min_samples = 2

    def advantages(self, rewards):
        return advantages.leave_one_out(rewards)


@keras.saving.register_keras_serializable(package="keras_reward")
class GreedyBaseline(Baseline):
    """The reward of the greedy output, see `advantages.greedy`.

    Example:

    ```python
    from keras import ops
    from keras_reward import GreedyBaseline

    greedy_rewards = ops.array([2.0])
    GreedyBaseline().advantages([[1.0, 2.0, 6.0]], greedy_rewards)  # [[-1.0, 0.0, 4.0]]
    ```
    """

    def advantages(self, rewards, greedy_rewards):
        return advantages.greedy(rewards, greedy_rewards)


@keras.saving.register_keras_serializable(package="keras_reward")
class MeanBaseline(Baseline):
    """The mean reward of all samples, see `advantages.mean`.

    Example:

    ```python
    from keras_reward import MeanBaseline

    MeanBaseline().advantages([[1.0, 2.0, 6.0]])  # [[-2.0, -1.0, 3.0]]
    ```
    """

    min_samples = 2

    def advantages(self, rewards):
        return advantages.mean(rewards)


@keras.saving.register_keras_serializable(package="keras_reward")
class MovingAverageBaseline(Baseline):
    """An average over earlier batches, see `advantages.moving_average`.

    Args:
        momentum: weight of the past, in [0, 1). Default 0.9: the average looks back
            about ten batches.
        name: optional name.

    Example:

    ```python
    from keras_reward import MovingAverageBaseline

    baseline = MovingAverageBaseline(momentum=0.75)
    baseline.advantages([[1.0, 2.0, 6.0]])  # [[1.0, 2.0, 6.0]], there is no average yet
    baseline.advantages([[7.0, 7.0, 7.0]])  # [[4.0, 4.0, 4.0]]
    ```
    """

    def __init__(self, momentum=0.9, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(
                "`momentum` must be at least 0 and below 1. "
                f"Received: momentum={momentum}"
            )
        self.momentum = momentum
        self.average = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(math.nan),
            trainable=False,
            aggregation="mean",
            name="average",
        )

    def advantages(self, rewards):
        average = ops.convert_to_tensor(self.average)
        result = advantages.moving_average(rewards, average)
        # Last: on TensorFlow the tensor may follow the variable.
        self.average.assign(advantages.update_average(average, rewards, self.momentum))
        return result

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


@keras.saving.register_keras_serializable(package="keras_reward")
class StandardizedBaseline(Baseline):
    """Another baseline, whose advantages are divided by the standard deviation.

    This biases the gradient, see `advantages.scale_by_std`.

    Args:
        baseline: the baseline that is scaled, in any form that `RewardTuning` takes.
            Default `"leave_one_out"`.
        epsilon: added to the deviation, in units of the reward. Default 1e-6.
        name: optional name.

    Example:

    ```python
    from keras_reward import StandardizedBaseline

    baseline = StandardizedBaseline("mean")
    baseline.advantages([[1.0, 2.0, 6.0]])  # [[-0.756, -0.378, 1.134]]
    ```
    """

    def __init__(self, baseline="leave_one_out", epsilon=1e-6, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.baseline = get(baseline)
        self.epsilon = epsilon

    @property
    def min_samples(self):
        return max(2, self.baseline.min_samples)

    @property
    def uses_greedy(self):
        return self.baseline.uses_greedy

    def advantages(self, rewards, **greedy_rewards):
        values = self.baseline.advantages(rewards, **greedy_rewards)
        return advantages.scale_by_std(values, rewards, self.epsilon)

    def get_config(self):
        baseline = serialized(self.baseline)
        return {**super().get_config(), "baseline": baseline, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package="keras_reward")
class NoBaseline(Baseline):
    """No baseline: the advantages are the rewards themselves."""

    def advantages(self, rewards):
        return rewards


@keras.saving.register_keras_serializable(package="keras_reward")
class FunctionBaseline(Baseline):
    """A plain function of rewards; what `baseline=function` makes.

    Args:
        function: takes rewards `(batch, samples)` and returns advantages, written in
            `keras.ops`. To load it from a saved file, register it with
            `keras.saving.register_keras_serializable`.
        name: optional name.

    Example:

    ```python
    from keras import ops
    from keras_reward import FunctionBaseline

    def minus_best(rewards):
        return rewards - ops.max(rewards, axis=1, keepdims=True)

    rewards = ops.array([[1.0, 2.0, 6.0]])
    FunctionBaseline(minus_best).advantages(rewards)  # [[-5.0, -4.0, 0.0]]
    ```
    """

    def __init__(self, function, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.function = function

    @property
    def uses_greedy(self):
        return "greedy_rewards" in inspect.signature(self.function).parameters

    def advantages(self, rewards, **greedy_rewards):
        try:
            return self.function(rewards, **greedy_rewards)
        except Exception as error:
            refuse_values(f"Baseline {self.name!r}", error)
            raise

    def get_config(self):
        function = serialized(self.function)
        return {**super().get_config(), "function": function}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "function": deserialized(entry(config, "function"))})


BASELINES = {
    "leave_one_out": LeaveOneOutBaseline,
    "greedy": GreedyBaseline,
    "mean": MeanBaseline,
    "moving_average": MovingAverageBaseline,
    "standardized": StandardizedBaseline,
}


def get(identifier):
    """The baseline that an identifier stands for.

    Args:
        identifier: a name in `BASELINES`, None, a function of rewards
            `(batch, samples)`, a `Baseline`, or its serialised config.

    Returns:
        A `Baseline`.

    Raises:
        ValueError: for anything else.
    """
    identifier = deserialized(identifier)
    if identifier is None:
        return NoBaseline()
    if isinstance(identifier, str) and identifier in BASELINES:
        return BASELINES[identifier]()
    if isinstance(identifier, Baseline):
        return identifier
    if callable(identifier) and not isinstance(identifier, type):
        return FunctionBaseline(identifier)
    raise ValueError(
        f"`baseline` must be one of {', '.join(map(repr, BASELINES))}, None, a "
        "function of rewards (batch, samples), or a Baseline. "
        f"Received: baseline={identifier!r}"
    )
