"""The base class of terms that can be added to the loss of the reward."""

import math

import keras

from keras_reward.nests import snake_case


class Term(keras.layers.Layer):
    """Base class: a term that is added to the loss of the reward.

    Subclass it and implement `loss`. Everything in `loss` should be written in
    `keras.ops`, so that it compiles on every backend. Its gradient flows into the model
    and into the term's own weights (`add_weight`, or layers as attributes), which are
    trained and saved with the tuner.

    Args:
        weight: factor of the term, not negative. Default 1.0. A term of weight 0 is a
            monitor: it is logged and has no influence.
        name: name in the logs. Default: the class's name in snake case.

    Attributes:
        log_names: names of the numbers that it logs. Default: its own name.
        uses_entropy: whether the term needs a gradient through
            `update.likelihood.entropy`. Default False.

    Example:

    ```python
    from keras import ops
    from keras_reward import Term

    class Confidence(Term):  # makes what was drawn likelier, whatever it earned
        def loss(self, update):
            return -ops.mean(update.likelihood.log_prob)

    # RewardTuning(model, reward=..., terms=[Confidence(0.01)])
    ```
    """

    uses_entropy = False

    def __init__(self, weight=1.0, name=None, **kwargs):
        name = name or snake_case(type(self).__name__)
        super().__init__(name=name, dtype="float32", **kwargs)
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"The `weight` of {type(self).__name__} must be a number, at least 0. "
                f"Received: weight={weight!r}"
            )
        self.weight = weight
        self.built = True

    @property
    def log_names(self):
        return (self.name,)

    def bind(self, tuner):
        """Called once, by the `RewardTuning` that the term is passed to.

        Args:
            tuner: a `RewardTuning` that has its `model` and `policy`.

        Raises:
            ValueError: if the term does not fit the policy.
        """

    def choices(self, policy, samples):
        """Other choices whose log-probabilities `loss` needs.

        Args:
            policy: a `Policy` with `takes_choices`.
            samples: nest of `(batch, n, ...)`.

        Returns:
            Sequence of tensors of the shape of `samples`, or of nests like them.
            Default: empty. Their log-probabilities are in
            `update.likelihood.choice_log_probs`.
        """
        return ()

    def loss(self, update):
        """The term, without its weight.

        Args:
            update: an `Update`.

        Returns:
            Scalar, the mean over inputs, logged under the term's name. Or a tuple of
            this scalar and a dict of the scalars to log instead, with the names in
            `log_names`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `loss(self, update)`."
        )

    def evaluate(self, update):
        """The loss of an update, and a dict of what to log."""
        try:
            result = self.loss(update)
        except (TypeError, AttributeError, ValueError) as error:
            if update.rollout.advantages is not None:
                raise
            raise ValueError(
                f"Term {self.name!r} failed, and there are no advantages where each "
                "part of an output gets credit of its own. If it uses them, pass "
                f'`credit="output"`. Received: {type(error).__name__}: {error}'
            ) from error
        value, logged = result if isinstance(result, tuple) else (result, None)
        logged = {self.name: value} if logged is None else logged
        shapes = {name: tuple(v.shape) for name, v in {"": value, **logged}.items()}
        if set(logged) != set(self.log_names) or any(shapes.values()):
            raise ValueError(
                f"Term {self.name!r} must return a scalar loss, and a scalar for each "
                f"of its `log_names`. Expected: {sorted(self.log_names)}. Received: a "
                f"loss of shape {shapes.pop('')}, and {shapes}"
            )
        return value, logged

    # For the compiled step, and for saving and loading.

    @property
    def frozen_variables(self):
        """List of variables that `loss` reads besides the tuner's own."""
        return []

    @property
    def saved_variables(self):
        """Variables to save besides the term's own weights, by name."""
        return {}

    @property
    def run_variables(self):
        """Variables that a `Checkpoint` keeps besides the term's own weights."""
        return list(self.saved_variables.values())

    def check_targets(self, policy, y):
        """Raises if `y` of `fit`, an array, is not what `loss` needs."""

    def before_training(self):
        """Called when training begins; raises if something that it needs is missing."""

    def before_saving(self):
        """Called before the variables are written, and after weights are read."""

    def before_loading(self):
        """Called before `saved_variables` are read from a file."""

    def get_config(self):
        return {"weight": self.weight, "name": self.name}
