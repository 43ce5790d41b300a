"""What reward tuning adds to `fit`, `evaluate` and `predict`: checks and callbacks."""

import functools

import keras

from keras_reward.callbacks.added import with_callbacks


class CheckedFitting:
    """Mixin for `RewardTuning`: Keras's loops, with what is to be done around them.

    Before: a look at arguments that are arrays, since a compiled step cannot look at
    values, and callbacks that show and say what happened. After: failures of a reward
    that runs on the host.
    """

    # A model that is its own policy need not have the methods that check.

    def check_x(self, x=None, *args, **kwargs):
        """Has the policy look at inputs that are arrays or tensors."""
        if are_arrays(x) and hasattr(self.policy, "check_inputs"):
            self.policy.check_inputs(x)

    def check_x_and_y(self, x=None, y=None, *args, **kwargs):
        """As `check_x`, and at the targets that `mle_weight` scores."""
        self.check_x(x)
        if self.mle_weight and are_arrays(y) and hasattr(self.policy, "check_targets"):
            self.policy.check_targets(y)

    def ready_reference(self):
        """What a reference leaves to do between loading a file and training."""
        if self.reference is not None:
            self.reference.ready()

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        self.check_x_and_y(*args, **kwargs)
        self.ready_reference()
        args, kwargs = with_callbacks(keras.Model.fit, self, args, kwargs)
        return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        self.check_x(*args, **kwargs)
        args, kwargs = with_callbacks(keras.Model.evaluate, self, args, kwargs)
        return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args, **kwargs):
        self.check_x(*args, **kwargs)
        return super().predict(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        self.check_x_and_y(*args, **kwargs)
        self.ready_reference()
        result = super().train_on_batch(*args, **kwargs)
        self.reward.raise_failure()
        return result

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, *args, **kwargs):
        result = super().test_on_batch(*args, **kwargs)
        self.reward.raise_failure()
        return result


def are_arrays(data):
    """Whether all leaves of a nest are NumPy arrays or tensors."""
    leaves = keras.tree.flatten(data)
    return all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves)
