"""Whether a policy reads a model's output as logits or as probabilities."""

import warnings

import keras
import numpy as np

from keras_reward.nests import host_array
from keras_reward.policies.activations import channels_first_width, last_activation

# How far sums of probabilities are from 1, by the dtype in which they were computed.
TOLERANCES = {"float16": 1e-2, "bfloat16": 6e-2}
TOLERANCE = 1e-3


class FromLogits:
    """Mixin for a `FactorizedPolicy` of a model that may end in an activation.

    With `from_logits="auto"` the last activation decides where the model's layers tell
    it, when the policy is bound. Else the values of the first output decide, which
    must not be in a compiled function. From then on `from_logits` is True or False,
    also in a saved config.

    A subclass implements `read_values`.

    Attributes:
        known: dict from the names of activations to `from_logits`.
        instead: what to do about other activations, a sentence for a message.
    """

    known = {}
    instead = ""

    def __init__(self, codec=None, from_logits="auto", name=None, **kwargs):
        super().__init__(codec=codec, name=name, **kwargs)
        if from_logits not in ("auto", True, False):
            raise ValueError(
                '`from_logits` must be True, False, or "auto". '
                f"Received: from_logits={from_logits!r}"
            )
        self.from_logits = self.given_from_logits = from_logits
        self._untracked(original=None)

    def bind(self, model, temperature=1.0):
        before = self.model
        super().bind(model, temperature)
        try:
            self.read_model()
        except ValueError:
            self._untracked(model=before)  # it may yet be that of another model
            raise
        return self

    def read_model(self):
        """Decides by the model's layers, if they tell; raises if it cannot be read."""
        last = last_activation(self.model, self.output_path)
        if last is not None:
            self.read_activation(last)

    def read_activation(self, last):
        """Decides by the last activation, if it is one of those known.

        Args:
            last: a `LastActivation`.
        """
        if self.from_logits != "auto":
            return
        if last.name not in self.known:
            *_, probabilities = [n for n, v in self.known.items() if not v]
            raise ValueError(
                f"{type(self).__name__} reads logits, or probabilities after a "
                f"{probabilities}, but model {self.model.name!r} ends in a "
                f"{last.name}. {self.instead} Received: last layer {last.layer!r}"
            )
        self.from_logits = self.known[last.name]

    @property
    def needs_first_batch(self):
        return self.from_logits == "auto"

    def check_first_batch(self, x):
        if self.needs_first_batch:
            self.encode(x)

    def check_output(self, output):
        """Decides by the values of an output, unless that has been done already."""
        super().check_output(output)
        if self.from_logits == "auto" and self.original is not None:
            self.from_logits = self.original.from_logits
        if self.from_logits != "auto":
            return
        values = host_array(output)
        name = type(self).__name__
        if values is None:
            raise ValueError(
                f"{name} cannot tell whether model {self.model.name!r} returns logits "
                "or probabilities: its layers do not say, and in a compiled function "
                f"there are no values to look at. Pass `{name}(from_logits=True)` for "
                f"logits, `{name}(from_logits=False)` for probabilities, or call "
                "`policy.check_first_batch(x)` with a few inputs first. "
                "Received: from_logits='auto'"
            )
        dtype = keras.backend.standardize_dtype(output.dtype)
        values = values.astype("float32")
        if np.isnan(values).any():
            raise ValueError(
                f"{name} cannot tell whether model {self.model.name!r} returns logits "
                "or probabilities, since its first output has NaN in it. Fix that, or "
                f"pass `{name}(from_logits=True)` or `{name}(from_logits=False)`. "
                f"Received: {np.isnan(values).sum()} NaN of {values.size} numbers"
            )
        tolerance = TOLERANCES.get(dtype, TOLERANCE)
        self.from_logits = self.read_values(values, tolerance)

    def read_values(self, values, tolerance):
        """Decides by the values of an output.

        Args:
            values: `(batch, ...)` float32.
            tolerance: how far sums of probabilities may be from 1.

        Returns:
            Whether they are logits.
        """
        raise NotImplementedError

    def twin(self, model):
        twin = super().twin(model)
        # Where the other model's layers do not tell either, it is read like this one.
        twin._untracked(original=self)
        return twin

    def given(self):
        return {**super().given(), "from_logits": self.given_from_logits}

    def get_config(self):
        return {**super().get_config(), "from_logits": self.from_logits}


def classes_are_logits(policy, values, tolerance):
    """Whether values `(batch, ..., classes)` are logits, else they are probabilities.

    Probabilities are not negative, and sum to 1 over the last axis. Says so where that
    decides, and warns about what is neither.

    Args:
        policy: for messages.
        values: float32 array.
        tolerance: how far sums may be from 1.

    Raises:
        ValueError: if the values sum to 1 over another axis than the last one.
    """
    name, model = type(policy).__name__, policy.model.name

    def sum_to_one(axis):
        totals = values.sum(axis, dtype="float64")
        return values.shape[axis] > 1 and (abs(totals - 1.0) <= tolerance).all()

    if not (values >= 0.0).all() or not values.any():
        return True
    if sum_to_one(-1):
        warnings.warn(
            f"{name} reads the output of model {model!r} as probabilities: in the "
            "first batch, no number is negative and they sum to 1 over the last axis. "
            f"Pass `{name}(from_logits=False)` to say the same, or `True` for logits.",
            stacklevel=2,
        )
        return False
    for axis in range(1, values.ndim - 1):
        if sum_to_one(axis):
            raise ValueError(in_other_axis(policy, axis, values.shape))
    if (values <= 1.0 + tolerance).all():
        warnings.warn(
            f"{name} reads the output of model {model!r} as logits, though in the "
            "first batch all of it lies between 0 and 1. If the model ends in a "
            'sigmoid, pass `policy="bernoulli"`. If these are logits, pass '
            f"`{name}(from_logits=True)`.",
            stacklevel=2,
        )
    return True


def refuse_unit_interval(policy, values):
    """Raises if values are all in [0, 1], and so may be logits or probabilities."""
    if ((values >= 0.0) & (values <= 1.0)).all():
        name = type(policy).__name__
        raise ValueError(
            f"{name} cannot tell whether model {policy.model.name!r} returns logits or "
            "probabilities: its layers do not say, and in the first batch its output "
            f"lies between 0 and 1. Pass `policy={name}(from_logits=False)` if the "
            f"model ends in a sigmoid, `policy={name}(from_logits=True)` if not. "
            f"Received: values from {values.min():.3g} to {values.max():.3g}"
        )


def refuse_other_axis(policy, last, shape):
    """Raises if the classes are in another axis than the last one.

    Args:
        policy: a policy bound to a model.
        last: the `LastActivation` of its output, or None.
        shape: of the output, with the batch. None if it is unknown.
    """
    axis = None if last is None else last.axis
    if axis is None and shape and channels_first_width(policy.model, shape):
        axis = 1
    if axis not in (None, -1):
        raise ValueError(in_other_axis(policy, axis, shape))


def in_other_axis(policy, axis, shape):
    """The message for classes in an axis other than the last one."""
    rank = 4 if shape is None else len(shape)
    order = (*(a for a in range(1, rank) if a != axis), axis)
    received = "" if shape is None else f", output of shape {tuple(shape)}"
    return (
        f"{type(policy).__name__} chooses among the last axis of the output, but model "
        f"{policy.model.name!r} has its classes in axis {axis}. Move them to the end: "
        f"tune `keras.Sequential([model, keras.layers.Permute({order})])`. "
        f"Received: classes in axis {axis}{received}"
    )
