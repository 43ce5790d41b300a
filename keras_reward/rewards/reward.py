"""The base class of rewards."""

import inspect

from keras_reward.nests import check_floatx, goes_with, rows_of, snake_case, to_tensor
from keras_reward.ragged import with_arrays
from keras_reward.rewards import checks
from keras_reward.rewards.credit import Credit, number_of
from keras_reward.symbolic import refuse_values


class Reward:
    """Base class: a number for each output, higher is better.

    Subclass it and implement `call`. Everything in `call` should be written in
    `keras.ops`, so that it compiles on every backend and stays on the accelerator.
    It is only ever evaluated, never differentiated. A size that differs from batch to
    batch is None in a tensor's `shape` on TensorFlow: take it from `ops.shape(tensor)`.

    A *row* is one sample of one input. In training there are `batch * num_samples`
    rows, with the samples of an input adjacent.

    Rewards combine: `a + b`, `a - b`, `a * b`, `0.1 * a`, `a + 1.0`. A reward that is
    added with weight 0 is a monitor: it is logged and has no influence.

    Args:
        name: name in the logs. Default: the class's name in snake case, without
            "Reward".

    Attributes:
        component_names: names of the components that `call` returns with the reward,
            each of which is logged. Default: none.

    Example:

    ```python
    import numpy as np
    from keras import ops
    from keras_reward import Reward

    class BrightnessReward(Reward):
        def call(self, y_true, y_pred):
            return ops.mean(y_pred, axis=(1, 2, 3))

    BrightnessReward()(None, np.ones((2, 4, 4, 3), "float32"))  # [1.0, 1.0]
    ```
    """

    component_names = ()
    function_name = "function"  # of this reward, in messages
    host_form = "HostReward({})"  # the same function of NumPy arrays as a reward
    runs_on_host = False  # whether `call` leaves the compiled step for Python
    supports_jit = True  # as in `keras.Layer`: if False, steps do not use XLA

    def __init__(self, name=None):
        self._name = name

    @property
    def name(self):
        """Name in the logs."""
        # `_name` may be missing: a subclass may forget `super().__init__()`.
        name = type(self).__name__
        stem = name.removesuffix("Reward") or name
        return getattr(self, "_name", None) or snake_case(stem)

    @property
    def uses_inputs(self):
        """Whether `call` takes the model's inputs as a third argument `inputs`."""
        return takes_inputs(self.call)

    @property
    def variables(self):
        """List of `keras.Variable` that `call` reads: tables, a reward model's weights.

        `RewardTuning` passes them to the compiled step, where they would otherwise be
        constants. It does not train them.
        """
        return []

    @property
    def saved_variables(self):
        """Those of `variables` that a `RewardTuning` saves in its checkpoint."""
        return self.variables

    def narrow(self, argument, values):
        """Deals with integers beyond int32, on the host, before they become tensors.

        Called where values can be seen: when the reward is called, before `fit` and
        `evaluate` for targets that are arrays, and on JAX, whose integers have 32 bits,
        for each batch of targets.

        Args:
            argument: `"y_true"` or `"y_pred"`.
            values: arrays or tensors, or a nest of them, or None.

        Returns:
            `values`, with ids numbered anew where this changes nothing for the reward.
            Default: `values` itself.

        Raises:
            ValueError: for integers that the reward would take for others.
        """
        del argument
        return values

    def prepare(self, y_true):
        """Preprocesses the targets, once per input instead of once per sample.

        Args:
            y_true: targets as the dataset yields them, `(batch, ...)`, or None.

        Returns:
            A nest of tensors with a leading batch axis. `call` gets it as `y_true`,
            with rows repeated to match `y_pred`. Default: `y_true` itself.
        """
        return y_true

    def call(self, y_true, y_pred):
        """The reward of each row.

        Args:
            y_true: the prepared targets, `(rows, ...)`, or None if the data has none.
            y_pred: outputs as the policy decodes them, `(rows, ...)`.
            inputs: only if the signature has it: the model's inputs, `(rows, ...)`.

        Returns:
            Floats of shape `(rows,)`, NaN for a row that has no reward; a value beyond
            1e12 counts as none: squares of gradients would overflow float32. With
            `component_names`, a tuple of these and a dict of `(rows,)` components.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `call(self, y_true, y_pred)`."
        )

    @property
    def on_host_instead(self):
        """Advice for messages: how to call what is written in NumPy."""
        form = self.host_form.format(self.function_name)
        return f", or have it run on the host, on NumPy arrays: `reward={form}`"

    def alternatives(self, y_true, y_pred, choices):
        """What each part of an output was worth: the rewards of other choices.

        Optional, for rewards of outputs whose positions are drawn independently, such
        as the pixels of a map. With it, `RewardTuning` gives each part credit of its
        own, which lowers the variance of the gradient by orders of magnitude. It pays
        where the reward depends on counts, which one part changes by one.

        Args:
            y_true: the prepared targets, `(rows, ...)`, or None if the data has none.
            y_pred: outputs as the policy decodes them, `(rows, ...)`.
            choices: what each choice decodes to. Without a codec, the choices
                themselves: `(choices,)` int32, and the positions are those of
                `y_pred`. With a codec, a `DecodedChoices`.
            inputs: only if the signature has it: the model's inputs, `(rows, ...)`.

        Returns:
            `(rows, *positions, choices)` floats: the reward of the whole output if this
            position alone had taken this choice. For the choice that it took, this is
            the reward of the row. A choice that is NaN has no influence.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what each part of an output was "
            "worth: it has no method `alternatives(self, y_true, y_pred, choices)`."
        )

    def gains(self, y_true, y_pred):
        """What each part of an output adds to the reward of those before it.

        Optional, for rewards of outputs that are written part after part, such as boxes
        by tokens. With it, `RewardTuning` credits each token with what its part and the
        later ones add, and not with what earlier ones did.

        Args:
            y_true: the prepared targets, `(rows, ...)`, or None if the data has none.
            y_pred: outputs as the policy decodes them, of M parts: `(rows, M, ...)`.
            inputs: only if the signature has it: the model's inputs, `(rows, ...)`.

        Returns:
            `(rows, M)` floats: the reward of the first k parts minus that of the first
            k - 1. The first also has what an output without parts earns, so that they
            sum to the reward. What the first k parts earn must not depend on later
            ones.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what each part of an output adds to "
            f"the reward: {self.name!r} has no method `gains(self, y_true, y_pred)`."
        )

    def has_own(self, method):
        """Whether this reward has `alternatives` or `gains`.

        One that a class inherits does not count if its own `call` is another one.
        """
        has_any = getattr(type(self), method) is not getattr(Reward, method)
        return has_any and goes_with(type(self), method, ("call", "evaluate"))

    def without_alternatives(self):
        """Names of the rewards in this one that have no `alternatives`."""
        return [] if self.has_own("alternatives") else [self.name]

    def without_gains(self):
        """Names of the rewards in this one that have no `gains`."""
        return [] if self.has_own("gains") else [self.name]

    def without_credit(self, has_choices=True):
        """Names of the rewards in this one that cannot credit parts.

        Args:
            has_choices: whether the policy chooses from a finite set at each position.
        """
        return self.without_alternatives() if has_choices else [self.name]

    @property
    def has_part_rewards(self):
        """Whether parts have rewards of their own, which need a baseline."""
        return False

    def evaluate_parts(self, y_true, y_pred, inputs, choices, positions):
        """As `evaluate`, and also returns what each part was worth, checked.

        Args:
            y_true, y_pred, inputs: as for `evaluate`.
            choices: as for `alternatives`, or None.
            positions: shape of the parts of an output.

        Returns:
            `(rewards, components, credit)`, the last a `Credit`.
        """
        evaluated = self.evaluate(y_true, y_pred, inputs)
        worth = self.ask("alternatives", y_true, y_pred, inputs, choices)
        expected = (rows_of(y_pred), *positions, number_of(choices))
        return *evaluated, Credit(
            checks.as_alternatives(self.name, worth, expected), None
        )

    def evaluate_gains(self, y_true, y_pred, inputs):
        """As `evaluate`, and also returns the `gains`, checked."""
        evaluated = self.evaluate(y_true, y_pred, inputs)
        added = self.ask("gains", y_true, y_pred, inputs)
        return *evaluated, checks.as_gains(self.name, added, rows_of(y_pred))

    def ask(self, method, y_true, y_pred, inputs, *choices):
        """Calls `alternatives` or `gains`, with the inputs if it takes them."""
        function = getattr(self, method)
        arguments = {"inputs": inputs} if takes_inputs(function) else {}
        try:
            return function(y_true, y_pred, *choices, **arguments)
        except Exception as error:
            refuse_values(f"`{method}` of reward {self.name!r}", error)
            raise

    def __call__(self, y_true, y_pred, inputs=None):
        """Computes the rewards of outputs, one per row.

        Args:
            y_true: targets, one per row, or None: arrays, tensors, or nests of them.
                Lists of numbers are arrays. Ragged ones of integers, such as captions,
                are padded with -1, as is a `tf.RaggedTensor`.
            y_pred: outputs, `(rows, ...)`, likewise.
            inputs: the model's inputs, one per row, for rewards that use them.

        Returns:
            `(rows,)` float32.

        Raises:
            ValueError: for values that cannot be right, and as `evaluate`.
        """
        check_floatx()
        y_true, y_pred, inputs = with_arrays((y_true, y_pred, inputs))
        checks.check_numbers(self.name, y_true=y_true, y_pred=y_pred, inputs=inputs)
        checks.check_rows(self.name, y_true, y_pred, inputs)
        y_true, y_pred = self.narrow("y_true", y_true), self.narrow("y_pred", y_pred)
        y_true, y_pred, inputs = to_tensor((y_true, y_pred, inputs))
        rewards = self.evaluate(self.prepare(y_true), y_pred, inputs)[0]
        self.check_values(y_true, y_pred)
        self.raise_failure()
        return rewards

    def check_values(self, y_true, y_pred):
        """Raises for values that cannot be right, such as images in 0 to 255.

        Only a call by hand, `reward(y_true, y_pred)`, checks values. A compiled step
        cannot see them: there `call` returns NaN for such rows. Default: nothing is
        checked.

        Args:
            y_true: targets as the dataset yields them, or None.
            y_pred: outputs, `(rows, ...)`.
        """
        return  # TensorFlow's AutoGraph cannot parse an empty body

    def evaluate(self, y_true, y_pred, inputs=None):
        """As `__call__`, but takes prepared targets and also returns the components.

        Args:
            y_true: what `prepare` returned, in rows.
            y_pred: outputs, `(rows, ...)`.
            inputs: the model's inputs in rows, or None.

        Returns:
            `(rewards, components)`: `(rows,)` float32, and a dict of such tensors by
            name.

        Raises:
            ValueError: if targets or inputs have other rows than outputs, if the result
                has the wrong shape or dtype or other components than `component_names`,
                if it needs targets and there are none, or if it is written in NumPy.
        """
        checks.check_rows(self.name, y_true, y_pred, inputs)
        arguments = {"inputs": inputs} if self.uses_inputs else {}
        try:
            result = self.call(y_true, y_pred, **arguments)
        except Exception as error:
            refuse_values(f"Reward {self.name!r}", error, self.on_host_instead)
            if y_true is not None:
                raise
            raise ValueError(
                f"Reward {self.name!r} failed, and the data has no targets. If it "
                "compares with targets, pass `(x, y)` instead of `x` alone. "
                f"Received: y_true=None, and the error {type(error).__name__}: {error}"
            ) from error
        rewards, components = result if isinstance(result, tuple) else (result, {})
        if set(components) != set(self.component_names):
            raise ValueError(
                f"Reward {self.name!r} must return the components that its "
                f"`component_names` declare. Expected: {sorted(self.component_names)}. "
                f"Received: {sorted(components)}"
            )
        rows = rows_of(y_pred)
        rewards = checks.as_rows(self.name, rewards, rows)
        return rewards, {
            component: checks.as_rows(f"{self.name}/{component}", values, rows)
            for component, values in components.items()
        }

    def raise_failure(self):
        """Raises an error that occurred on the host since the last call, if any.

        An exception inside a compiled step would lose the weights. So a reward that
        runs on the host keeps it, and `RewardTuning` calls this after each step.
        """
        return  # TensorFlow's AutoGraph cannot parse an empty body

    def component_log_name(self, component):
        """Name of a component in the logs of a sum or product with this reward.

        If the reward was given a name, this is the prefix, so that two rewards of the
        same class can be distinguished.
        """
        return f"{self.name}_{component}" if getattr(self, "_name", None) else component

    def log_names(self):
        """Names under which this reward logs as a part of a sum or product."""
        return (self.name, *map(self.component_log_name, self.component_names))

    def get_config(self):
        return {"name": getattr(self, "_name", None)}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"<{type(self).__name__} {self.name}>"

    def __add__(self, other):
        return combine().add(self, other)

    __radd__ = __add__

    def __mul__(self, other):
        return combine().multiply(self, other)

    __rmul__ = __mul__

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + (-1.0 * other)

    def __rsub__(self, other):
        return other + (-self)


def combine():
    # Combinations are rewards, so their module imports this one.
    from keras_reward.rewards import combination

    return combination


def takes_inputs(function):
    """Whether a reward function has an argument `inputs`."""
    return "inputs" in inspect.signature(function).parameters
