"""What reward tuning adds to `fit`, `evaluate` and `predict`: checks and callbacks."""

import functools
import inspect
import random
import warnings

import keras

from keras_reward.backend.keras_private import print_message, variables_of_optimizer
from keras_reward.nests import are_arrays, refuse_cut_integers
from keras_reward.ragged import dense
from keras_reward.tuning.credit import described
from keras_reward.tuning.default_callbacks import with_callbacks
from keras_reward.tuning.first_batch import show_first_batch
from keras_reward.tuning.resuming import whole_run


class CheckedFitting:
    """Mixin for `RewardTuning`: Keras's loops, with checks and callbacks around them.

    Before a loop, arguments that are arrays are checked, since a compiled step cannot
    inspect values, ids beyond int32 are numbered anew or refused, the policy sees the
    first batch if it needs it, and callbacks are added that report progress and
    problems. After it, failures of a reward that runs on the host are raised.
    """

    has_warned = False  # that nothing is trainable
    has_said_credit = False  # in the log of `fit`
    data_seed = data_run = None  # of the order of the data

    def check_x(self, x=None, *args, **kwargs):
        """Has the policy check inputs that are arrays or tensors."""
        if are_arrays(x):
            self.policy.check_inputs(x)

    def check_x_and_y(self, x=None, y=None, *args, **kwargs):
        """As `check_x`, and has the terms check the targets."""
        self.check_x(x)
        if are_arrays(y):
            for term in self.terms:
                term.check_targets(self.policy, y)

    def read_targets(self, y):
        """Targets without ragged axes, with integers that reward and backend hold.

        Keras would pad ragged targets with 0 on some backends, which may be a token,
        and leave them ragged on others.
        """
        y = dense(y)
        if are_arrays(y):
            y = self.reward.narrow("y_true", y)
            refuse_cut_integers(y)
        return y

    def with_targets(self, method, args, kwargs):
        """The arguments of a method of Keras's, with targets read by `read_targets`."""
        bound = inspect.signature(method).bind(self, *args, **kwargs)
        arguments = bound.arguments
        if arguments.get("y") is not None:
            arguments["y"] = self.read_targets(arguments["y"])
        held_out = arguments.get("validation_data")
        if isinstance(held_out, (tuple, list)) and len(held_out) > 1:
            self.check_x(held_out[0])
            targets = self.read_targets(held_out[1])
            arguments["validation_data"] = (held_out[0], targets, *held_out[2:])
        return bound.args[1:], bound.kwargs

    def ready_terms(self):
        """Finishes loading, and lets the terms raise if something is missing."""
        self.adapters.restore()
        for term in self.terms:
            term.before_training()

    def make_train_function(self, force=False):
        """Makes the step, unless it is there; raises if it would train other weights.

        Keras calls it before the first step of `fit`, when the model is built.
        """
        if self.train_function is None:
            self.has_warned = False
        super().make_train_function(force)
        optimizer, weights = self.optimizer, self.trainable_variables
        if optimizer is None or not optimizer.built:
            return
        known = variables_of_optimizer(optimizer)
        if [id(v) for v in known] != [id(v) for v in weights]:
            raise ValueError(
                "Which weights are trainable has changed since the tuning was compiled "
                "and first trained, for example by `enable_lora`, or by freezing a "
                "layer, and its optimizer would go on with the old ones. Compile it "
                "again, with a new optimizer, before you train it. "
                f"Received: {len(weights)} trainable variables, of which the optimizer "
                f"knows {len({id(v) for v in known} & {id(v) for v in weights})}"
            )

    def say_credit(self):
        """Says in the log of `fit`, once, what gets credit."""
        if not self.has_said_credit:
            self.has_said_credit = True
            print_message(described(self.by_parts, self.reward, self.policy))

    def warn_untrainable(self):
        """Warns, once for each `compile`, that a step has nothing to train."""
        if not self.has_warned:
            self.has_warned = True
            warnings.warn(
                "The model does not have any trainable weights.", stacklevel=2
            )

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        args, kwargs = self.with_targets(keras.Model.fit, args, kwargs)
        self.check_x_and_y(*args, **kwargs)
        self.ready_terms()
        args, kwargs = show_first_batch(keras.Model.fit, self, args, kwargs)
        args, kwargs = with_callbacks(keras.Model.fit, self, args, kwargs)
        with whole_run(self, args, kwargs) as (args, kwargs):
            return super().fit(*args, **kwargs)

    def data_key(self, initial_epoch, resumed=None):
        """Ints from which the order of the data of a run follows: seed and run.

        Args:
            initial_epoch: a `fit` that begins at the first epoch is a new run.
            resumed: what this returned for a run that goes on, or None.
        """
        if resumed is not None:
            self.data_seed, self.data_run = resumed
        elif initial_epoch == 0 or self.data_run is None:
            self.data_run = 0 if self.data_run is None else self.data_run + 1
        if self.data_seed is None and self.seed is not None:
            self.data_seed = self.seed
        elif self.data_seed is None:
            self.data_seed = random.randrange(2**32)  # whence Keras takes seeds too
        return self.data_seed, self.data_run

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        # Within `fit`, the validation data have been seen already.
        if not kwargs.get("_use_cached_eval_dataset", False):
            args, kwargs = self.with_targets(keras.Model.evaluate, args, kwargs)
            self.check_x(*args, **kwargs)
        args, kwargs = show_first_batch(keras.Model.evaluate, self, args, kwargs)
        args, kwargs = with_callbacks(keras.Model.evaluate, self, args, kwargs)
        return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args, **kwargs):
        self.check_x(*args, **kwargs)
        args, kwargs = show_first_batch(keras.Model.predict, self, args, kwargs)
        return super().predict(*args, **kwargs)

    @functools.wraps(keras.Model.predict_on_batch)
    def predict_on_batch(self, *args, **kwargs):
        args, kwargs = show_first_batch(
            keras.Model.predict_on_batch, self, args, kwargs
        )
        return super().predict_on_batch(*args, **kwargs)

    @functools.wraps(keras.Model.train_on_batch)
    def train_on_batch(self, *args, **kwargs):
        args, kwargs = self.with_targets(keras.Model.train_on_batch, args, kwargs)
        self.check_x_and_y(*args, **kwargs)
        self.ready_terms()
        args, kwargs = show_first_batch(keras.Model.train_on_batch, self, args, kwargs)
        result = super().train_on_batch(*args, **kwargs)
        self.reward.raise_failure()
        return result

    @functools.wraps(keras.Model.test_on_batch)
    def test_on_batch(self, *args, **kwargs):
        args, kwargs = self.with_targets(keras.Model.test_on_batch, args, kwargs)
        args, kwargs = show_first_batch(keras.Model.test_on_batch, self, args, kwargs)
        result = super().test_on_batch(*args, **kwargs)
        self.reward.raise_failure()
        return result
