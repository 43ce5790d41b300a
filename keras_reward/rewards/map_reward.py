"""Rewards that are a map: each part of an output is credited with what is near it."""

import keras
import numpy as np
from keras import ops

from keras_reward.advantages import within_range
from keras_reward.nests import goes_with, is_float, may_be_equal, rows_of
from keras_reward.rewards.checks import check_rows, refuse_empty
from keras_reward.rewards.combination import FunctionReward
from keras_reward.rewards.credit import Credit
from keras_reward.rewards.host import HostReward
from keras_reward.symbolic import refuse_values

REDUCTIONS = ("mean", "sum")


@keras.saving.register_keras_serializable(package="keras_reward")
class MapReward(FunctionReward):
    """A function that returns a map, whose mean over all places is the reward.

    `RewardTuning` credits each part of an output, such as a pixel, with the part of the
    reward that lies within its reach, minus the same of the other samples (or what
    `baseline` makes of it), instead of with the whole reward. What lies further away
    does not depend on the part, so leaving it out lowers the variance of the gradient
    and does not bias it.

    The gradient is unbiased if nothing of the map beyond the reach of a part depends on
    that part. With a reach that is too small it is biased: a part is not credited with
    what it changes further away. For maps of windows, such as 3 x 3 pixels, the reach
    is the radius of the window, here 1. A map that is divided by a number for the whole
    image, such as its area, depends on every part.

    For outputs with a position for each place of the map: `CategoricalPolicy`,
    `BernoulliPolicy` and `GaussianPolicy` with outputs `(batch, height, width)` or
    `(batch, height, width, channels)`.

    Args:
        function: `(y_true, y_pred) -> (rows, height, width)` or
            `(y_true, y_pred, inputs) -> (rows, height, width)` floats, written in
            `keras.ops`. Or a `HostReward` of a function of NumPy arrays that returns
            such a map. A row with NaN has no reward.
        reach: how many places away, in both directions, the map depends on a part: int,
            at least 0. Default 0: only at its own place.
        reduction: `"mean"` (default) or `"sum"` over all places.
        name: name in the logs. Default: the function's own.

    Call arguments: `y_true`, `y_pred` as the function takes them. Returns `(rows,)`.

    Raises:
        ValueError: for a result that is not a map, a reach that is not smaller than the
            map, and in training, for outputs whose positions are not those of the map.

    Example:

    ```python
    import numpy as np
    from keras import ops
    from keras_reward import MapReward

    def smooth(y_true, y_pred):
        levels = ops.cast(y_pred, "float32")
        steps = ops.abs(levels[:, :, 1:] - levels[:, :, :-1])
        return -ops.pad(steps, ((0, 0), (0, 0), (0, 1)))

    reward = MapReward(smooth, reach=1)
    reward(None, np.array([[[0, 0, 1, 1]]]))  # [-0.25]
    ```
    """

    host_form = "MapReward(HostReward({}))"

    def __init__(self, function, reach=0, reduction="mean", name=None):
        if not callable(function):
            raise ValueError(
                "`function` must be a function `(y_true, y_pred) -> (rows, height, "
                f"width)`. Received: function={function!r}"
            )
        super().__init__(function, name=name)
        if not isinstance(reach, int) or isinstance(reach, bool) or reach < 0:
            raise ValueError(
                f"`reach` must be an int of at least 0. Received: reach={reach!r}"
            )
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"`reduction` must be one of {REDUCTIONS}. "
                f"Received: reduction={reduction!r}"
            )
        self.reach = reach
        self.reduction = reduction

    @property
    def runs_on_host(self):
        return isinstance(self.function, HostReward)

    @property
    def name(self):
        if self.runs_on_host:
            return self._name or self.function.name
        return super().name

    @property
    def uses_inputs(self):
        return self.function.uses_inputs if self.runs_on_host else super().uses_inputs

    @property
    def supports_jit(self):
        return self.function.supports_jit if self.runs_on_host else True

    @property
    def component_names(self):
        return self.function.component_names if self.runs_on_host else ()

    def raise_failure(self):
        if self.runs_on_host:
            self.function.raise_failure()

    def call(self, y_true, y_pred, inputs=None):
        places, components = self.places(y_true, y_pred, inputs)
        return self.reduced(places), components

    def places(self, y_true, y_pred, inputs):
        """The map in float32, `(rows, height, width)`, and a dict of components."""
        components = {}
        if self.runs_on_host:
            shape = tuple(y_pred.shape[1:3])
            places, seconds = self.function.values(y_true, y_pred, inputs, shape)
            components = dict.fromkeys(self.component_names, seconds)
        else:
            given = {"inputs": inputs} if self.uses_inputs else {}
            places = ops.convert_to_tensor(self.function(y_true, y_pred, **given))
        shape, rows = tuple(places.shape), rows_of(y_pred)
        has_rows = len(shape) == 3 and may_be_equal(shape[:1], (rows,))
        if not has_rows or not is_float(places):
            raise ValueError(
                f"The function of MapReward {self.name!r} must return floats of shape "
                "(rows, height, width), and nothing is broadcast. "
                f"Expected: {'rows' if rows is None else rows} rows. "
                f"Received: shape {shape}, dtype {places.dtype}"
            )
        refuse_empty(self.name, "function(...)", shape)
        if None not in shape and self.reach >= max(shape[1:]):
            raise ValueError(
                f"The `reach` of MapReward {self.name!r} must be smaller than its map. "
                "If each part matters for the whole map, let the function return one "
                "number for each row, and pass the function itself as the reward. "
                f"Received: reach={self.reach}, a map of {shape[1]}x{shape[2]}"
            )
        return ops.cast(places, "float32"), components

    def reduced(self, places):
        """The reward of each row, `(rows,)`, from its map."""
        return ops.sum(places, axis=(1, 2)) / self.divisor(places)

    def divisor(self, places):
        """What the sum over places is divided by."""
        if self.reduction == "sum":
            return 1.0
        _, height, width = ops.shape(places)
        return ops.cast(height * width, "float32")

    def without_alternatives(self):
        return [self.name]

    def without_credit(self, has_choices=True):
        fits = goes_with(type(self), "evaluate_parts", ("call", "evaluate", "places"))
        return [] if fits else [self.name]

    @property
    def has_part_rewards(self):
        return True

    def evaluate_parts(self, y_true, y_pred, inputs, choices, positions):
        check_rows(self.name, y_true, y_pred, inputs)
        try:
            places, components = self.places(y_true, y_pred, inputs)
        except Exception as error:
            refuse_values(f"Reward {self.name!r}", error, self.on_host_instead)
            raise
        shape = tuple(places.shape[1:])
        if not may_be_equal(tuple(positions[:2]), shape) or len(positions) > 3:
            raise ValueError(
                f"The map of MapReward {self.name!r} must have a place for each "
                'position of an output. Use `credit="output"` for others. '
                f"Received: a map of shape {shape}, positions of shape {positions}"
            )
        near = within_range(within_reach(places, self.reach) / self.divisor(places))
        reward = within_range(self.reduced(places))
        near = ops.where(ops.isfinite(reward)[:, None, None], near, np.nan)
        if len(positions) == 3:
            near = ops.repeat(ops.expand_dims(near, -1), positions[2], axis=-1)
        return reward, components, Credit(None, near)

    def get_config(self):
        config = {"reach": self.reach, "reduction": self.reduction}
        return {**super().get_config(), **config}


def within_reach(places, reach):
    """Sums of a map `(rows, height, width)` over the square around each place.

    The square has the side `2 * reach + 1`, and is cut off at the border.
    """
    if reach == 0:
        return places
    side = 2 * reach + 1
    sides = ((0, 0), (reach, reach), (reach, reach), (0, 0))
    sums = ops.pad(ops.expand_dims(places, -1), sides)
    for window in ((side, 1), (1, side)):
        sums = ops.average_pool(sums, window, strides=1, padding="valid") * side
    return ops.squeeze(sums, -1)
