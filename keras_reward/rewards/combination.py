"""Sums and products of rewards, and plain functions as rewards."""

import numbers

import keras
import numpy as np
from keras import ops

from keras_reward.advantages import within_range
from keras_reward.nests import are_arrays, goes_with, map_leaves
from keras_reward.rewards.credit import Credit, positions_of, weighted_sum
from keras_reward.rewards.reward import Reward, takes_inputs
from keras_reward.saved_objects import deserialized, entry, serialized

# A subclass that overwrites one of the last credits parts in another way.
COMBINING = ("merged_credit", ("call", "evaluate", "merge"))
ADDING = ("merged_gains", ("call", "evaluate", "merge"))


class Combination(Reward):
    """Base class of rewards that evaluate several others on the same outputs."""

    def __init__(self, rewards, name=None):
        super().__init__(name=name)
        self.rewards = [as_reward(reward) for reward in rewards]
        names = self.component_names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                "Rewards that are combined need different names, since each is "
                "logged. Name them, for example "
                f"`FunctionReward(function, name=...)`. Received twice: {repeated}"
            )

    @property
    def component_names(self):
        return tuple(name for reward in self.rewards for name in reward.log_names())

    def log_names(self):
        return super().log_names() if self._name else self.component_names

    @property
    def uses_inputs(self):
        return any(reward.uses_inputs for reward in self.rewards)

    @property
    def runs_on_host(self):
        return any(reward.runs_on_host for reward in self.rewards)

    @property
    def supports_jit(self):
        return all(reward.supports_jit for reward in self.rewards)

    @property
    def variables(self):
        return [v for reward in self.rewards for v in reward.variables]

    @property
    def saved_variables(self):
        return [v for reward in self.rewards for v in reward.saved_variables]

    def raise_failure(self):
        for reward in self.rewards:
            reward.raise_failure()

    def narrow(self, argument, values):
        narrowed = [reward.narrow(argument, values) for reward in self.rewards]
        # What is right for one reward may be wrong for another one.
        return narrowed[0] if are_equal(narrowed) else values

    def check_values(self, y_true, y_pred):
        for reward in self.rewards:
            reward.check_values(y_true, y_pred)

    def prepare(self, y_true):
        return [reward.prepare(y_true) for reward in self.rewards]

    def call(self, y_true, y_pred, inputs=None):
        pairs = zip(self.rewards, y_true, strict=True)
        return self.collected([r.evaluate(t, y_pred, inputs) for r, t in pairs])

    def collected(self, results):
        """The combined reward and all components, from those of each reward."""
        values, components = [], {}
        for reward, (value, inner) in zip(self.rewards, results, strict=True):
            values.append(value)
            if reward.name in reward.log_names():
                components[reward.name] = value
            for name, component in inner.items():
                components[reward.component_log_name(name)] = component
        return within_range(self.merge(values)), components

    def merge(self, values):
        """Combines a list of rewards, `(rows,)` each, into one."""
        raise NotImplementedError

    def merged_credit(self, credits):
        """Combines the `Credit` of each of the `influential` rewards into one."""
        raise NotImplementedError

    def merged_gains(self, gains):
        """Combines the `gains` of each of the `influential` rewards."""
        raise NotImplementedError

    @property
    def influential(self):
        """Indices of the rewards that have an influence."""
        return range(len(self.rewards))

    def lacking(self, names_of, combining=COMBINING):
        """Names that a function gives for the influential rewards.

        Or the own name if there are none, or if this combines credit as a base class
        does, but not rewards.
        """
        if not self.influential or not goes_with(type(self), *combining):
            return [self.name]
        return [n for i in self.influential for n in names_of(self.rewards[i])]

    def without_alternatives(self):
        return self.lacking(lambda reward: reward.without_alternatives())

    def without_gains(self):
        return self.lacking(lambda reward: reward.without_gains(), ADDING)

    def alternatives(self, y_true, y_pred, choices, inputs=None):
        given = y_pred, inputs, choices, positions_of(y_pred, choices)
        return self.evaluate_parts(y_true, *given)[-1].alternatives

    def gains(self, y_true, y_pred, inputs=None):
        return self.evaluate_gains(y_true, y_pred, inputs)[-1]

    def evaluate_parts(self, y_true, y_pred, inputs, choices, positions):
        given = y_pred, inputs, choices, positions
        collected, credits = self.each_evaluated("evaluate_parts", y_true, *given)
        merged = map_leaves(within_range, tuple(self.merged_credit(credits)))
        return *collected, Credit(*merged)

    def evaluate_gains(self, y_true, y_pred, inputs):
        collected, gains = self.each_evaluated("evaluate_gains", y_true, y_pred, inputs)
        return *collected, within_range(self.merged_gains(gains))

    def each_evaluated(self, method, y_true, y_pred, inputs, *choices):
        """Evaluates each reward once, the influential ones by a method.

        Returns:
            What `collected` returns, and a list of what the method returns beside it.
        """
        results, credits = [], []
        for i, (reward, targets) in enumerate(zip(self.rewards, y_true, strict=True)):
            given = targets, y_pred, inputs
            if i in self.influential:
                *result, credit = getattr(reward, method)(*given, *choices)
                credits.append(credit)
            else:
                result = reward.evaluate(*given)
            results.append(result)
        return self.collected(results), credits

    def get_config(self):
        rewards = [serialized(reward) for reward in self.rewards]
        return {**super().get_config(), "rewards": rewards}

    @classmethod
    def from_config(cls, config):
        rewards = [deserialized(reward) for reward in entry(config, "rewards")]
        return cls(**{**config, "rewards": rewards})


@keras.saving.register_keras_serializable(package="keras_reward")
class SumReward(Combination):
    """Weighted sum of rewards; the result of `+`, `-` and `number *`.

    Each reward in the sum is logged under its name, without its weight.

    Args:
        rewards: list of rewards.
        weights: list of numbers, one for each reward. A reward of weight 0 is a
            monitor: it is logged and has no influence, even where it is NaN.
        offset: a number added to the sum.
        name: optional name.

    Example:

    ```python
    from keras_reward import HueEntropyReward, VividnessReward

    reward = VividnessReward() + 0.5 * HueEntropyReward()
    reward.component_names  # ("vividness", "hue_entropy")
    ```
    """

    def __init__(self, rewards, weights=None, offset=0.0, name=None):
        super().__init__(rewards, name=name)
        self.weights = [1.0] * len(self.rewards) if weights is None else list(weights)
        self.offset = offset
        if len(self.weights) != len(self.rewards):
            raise ValueError(
                "`weights` must have one number for each reward. "
                f"Received: {len(self.weights)} weights, {len(self.rewards)} rewards"
            )

    @property
    def influential(self):
        """Indices of the rewards whose weight is not 0."""
        return [i for i, weight in enumerate(self.weights) if weight != 0.0]

    def without_credit(self, has_choices=True):
        return self.lacking(lambda reward: reward.without_credit(has_choices))

    @property
    def has_part_rewards(self):
        return any(self.rewards[i].has_part_rewards for i in self.influential)

    def merged_credit(self, credits):
        weights = [self.weights[i] for i in self.influential]
        return weighted_sum(credits, weights, self.offset)

    def merged_gains(self, gains):
        weights = [self.weights[i] for i in self.influential]
        first, *rest = (w * g for w, g in zip(weights, gains, strict=True))
        total = sum(rest, first)
        return ops.concatenate([total[:, :1] + self.offset, total[:, 1:]], axis=1)

    def merge(self, values):
        total = ops.zeros_like(values[0]) + self.offset
        for weight, value in zip(self.weights, values, strict=True):
            if weight != 0.0:
                total = total + weight * value
        return total

    def get_config(self):
        return {
            **super().get_config(),
            "weights": self.weights,
            "offset": self.offset,
        }

    def __repr__(self):
        terms = [
            f"{weight:g} * {reward!r}"
            for weight, reward in zip(self.weights, self.rewards, strict=True)
        ]
        return " + ".join(terms + ([f"{self.offset:g}"] if self.offset else []))


@keras.saving.register_keras_serializable(package="keras_reward")
class ProductReward(Combination):
    """Product of rewards; the result of `reward * reward`.

    Args:
        rewards: list of rewards, each logged under its name.
        name: optional name.
    """

    def merged_credit(self, credits):
        return Credit(self.merge([credit.alternatives for credit in credits]), None)

    def merged_gains(self, gains):
        earned = self.merge([ops.cumsum(each, axis=1) for each in gains])
        return ops.concatenate([earned[:, :1], earned[:, 1:] - earned[:, :-1]], axis=1)

    def merge(self, values):
        product = values[0]
        for value in values[1:]:
            product = product * value
        return product

    def __repr__(self):
        return " * ".join(f"({reward!r})" for reward in self.rewards)


@keras.saving.register_keras_serializable(package="keras_reward")
class FunctionReward(Reward):
    """A plain function as a reward; what `reward=function` makes.

    Args:
        function: `(y_true, y_pred) -> (rows,)` or `(y_true, y_pred, inputs) ->
            (rows,)`, written in `keras.ops`. To load it from a saved file, register it
            with `keras.saving.register_keras_serializable`.
        name: name in the logs. Default: the function's own.

    It may be used as a decorator. Unlike plain functions, two of them can be added.

    Example:

    ```python
    import numpy as np
    from keras import ops
    from keras_reward import FunctionReward

    @FunctionReward
    def brightness(y_true, y_pred):
        return ops.mean(y_pred, axis=(1, 2, 3))

    @FunctionReward
    def contrast(y_true, y_pred):
        return ops.std(y_pred, axis=(1, 2, 3))

    images = np.ones((2, 4, 4, 3), "float32")
    brightness(None, images)                       # [1.0, 1.0]
    (brightness + 0.5 * contrast)(None, images)    # [1.0, 1.0]
    ```
    """

    def __init__(self, function, name=None):
        super().__init__(name=name)
        self.function = function

    @property
    def name(self):
        own = getattr(self.function, "__name__", type(self.function).__name__)
        return self._name or own.strip("<>")

    @property
    def function_name(self):
        own = getattr(self.function, "__name__", "")
        return own if own.isidentifier() else super().function_name

    @property
    def uses_inputs(self):
        return takes_inputs(self.function)

    def call(self, y_true, y_pred, **inputs):
        return self.function(y_true, y_pred, **inputs)

    def get_config(self):
        function = serialized(self.function)
        return {**super().get_config(), "function": function}

    @classmethod
    def from_config(cls, config):
        function = deserialized(entry(config, "function"))
        return cls(**{**config, "function": function})


def are_equal(nests):
    """Whether nests are the same objects, or arrays with the same values."""
    first, *others = map(keras.tree.flatten, nests)
    return all(
        one is other or (are_arrays([one, other]) and np.array_equal(one, other))
        for leaves in others
        for one, other in zip(first, leaves, strict=True)
    )


def as_reward(value):
    """A `Reward` from a reward or a plain function."""
    if isinstance(value, Reward):
        return value
    if callable(value) and not isinstance(value, type):
        return FunctionReward(value)
    raise ValueError(
        "A reward must be a Reward or a function `(y_true, y_pred) -> (rows,)`. "
        f"Received: {value!r}"
    )


def add(first, second):
    """`first + second` for a reward and a reward, a function or a number."""
    if isinstance(second, numbers.Real):
        terms = _terms(first)
        return SumReward(terms.rewards, terms.weights, terms.offset + float(second))
    first, second = _terms(first), _terms(as_reward(second))
    return SumReward(
        first.rewards + second.rewards,
        first.weights + second.weights,
        first.offset + second.offset,
    )


def multiply(first, second):
    """`first * second` for a reward and a reward, a function or a number."""
    if isinstance(second, numbers.Real):
        terms, factor = _terms(first), float(second)
        weights = [factor * weight for weight in terms.weights]
        return SumReward(terms.rewards, weights, factor * terms.offset)
    return ProductReward([first, as_reward(second)])


def _terms(reward):
    """Any reward as a sum; a sum that has a name counts as one reward."""
    if isinstance(reward, SumReward) and reward._name is None:
        return reward
    return SumReward([reward])
