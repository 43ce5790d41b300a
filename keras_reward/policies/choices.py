"""What each choice at a position decodes to, for rewards that credit parts."""

import keras
from keras import ops

from keras_reward.nests import repeat_rows, samples_per_input
from keras_reward.policies.policy import Policy


class DecodedChoices:
    """The choices of a policy that decodes them, as `Reward.alternatives` gets them.

    `len(choices)` is their number. `choices[c]`, with an int or an int32 scalar tensor,
    is what an output decodes to in which every part takes choice c, in rows: at each
    part, what this choice decodes to there.

    Args:
        policy: a `Policy` whose codec has `independent_positions`, or which decodes
            samples itself.
        x: the model's inputs, `(batch, ...)`.
        context: what `policy.encode(x)` returned.
        samples: `(batch, n, *positions)`.

    Attributes:
        positions: shape of the parts of an output, such as (rows, columns) of a grid:
            ints, or tensors where they are unknown while tracing.
    """

    def __init__(self, policy, x, context, samples):
        self.policy, self.x, self.context = policy, x, context
        self.samples = samples
        self.number = policy.number_of_choices(context)
        self.positions = tuple(ops.shape(policy.choices_of(samples))[2:])

    def __len__(self):
        return self.number

    def __getitem__(self, choice):
        chosen = self.policy.choices_of(self.samples)
        dtype = keras.backend.standardize_dtype(chosen.dtype)
        n = samples_per_input(self.samples)
        # Where samples are choices alone, all of an input decode to the same.
        once = chosen is self.samples
        same = ops.zeros_like(chosen[:, : 1 if once else n]) + ops.cast(choice, dtype)
        same = self.policy.with_choices(self.samples, same)
        decoded = self.policy.sampled_outputs(self.x, self.context, same)
        return repeat_rows(decoded, n) if once else decoded

    def map(self, function):
        """The results of a function of each choice, in a new last axis.

        One choice after the other, so that memory holds one decoded output at a time.

        Args:
            function: takes `choices[c]` and returns a tensor.
        """
        numbers = ops.arange(len(self), dtype="int32")
        stacked = ops.map(lambda number: function(self[number]), numbers)
        return ops.moveaxis(stacked, 0, -1)


def choices_for(policy, x, context, samples):
    """What `Reward.alternatives` gets as `choices`; None if there are no choices.

    Args:
        policy, x, context, samples: as for `DecodedChoices`.
    """
    if not policy.has_choices:
        return None
    decodes_itself = type(policy).decode is not Policy.decode
    if decodes_itself or policy.decode_function is not None:
        return DecodedChoices(policy, x, context, samples)
    return ops.arange(policy.number_of_choices(context), dtype="int32")
