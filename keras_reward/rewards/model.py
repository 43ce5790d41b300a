"""A frozen Keras model as a reward."""

import keras
from keras import ops

from keras_reward.backend.keras_private import flatten_layers
from keras_reward.rewards.reward import Reward


@keras.saving.register_keras_serializable(package="keras_reward")
class ModelReward(Reward):
    """The score that a Keras model gives: a classifier, a critic, a preference model.

    The scorer runs inside the compiled step, with `training=False` and without
    gradient. It is not trained and not changed; its `trainable` flag stays as it is.

    Does not punish: outputs that fool the scorer. A model that is tuned for another
    model finds its weaknesses; watch a reward that does not share them, as a term of
    weight 0: `ModelReward(scorer) + 0.0 * other`.

    Args:
        scorer: a built `keras.Model`, or None to set it later. It is called with the
            list `[inputs, outputs]`, both in rows, and returns one number for each
            row, `(rows,)` or `(rows, 1)`.
        with_inputs: if False, the scorer is called with the outputs alone. Default
            True.
        save_scorer: if True, the scorer and its weights enter the checkpoint of a
            `RewardTuning`. Default False: after loading, give it back by
            `tuned.reward.scorer = scorer` before training goes on.
        name: name in the logs. Default: "model".

    Call arguments: `y_true` is not used; `y_pred` and `inputs` as the scorer takes
    them. Returns `(rows,)`.

    Raises:
        ValueError: if `scorer` is not built; in a call, if there is none, or if it
            returns another shape.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward import ModelReward

    image, edited = keras.Input((8, 8, 1)), keras.Input((8, 8, 3))
    pixels = keras.layers.Concatenate()([image, edited])
    score = keras.layers.Dense(1)(keras.layers.Flatten()(pixels))
    scorer = keras.Model([image, edited], score)

    rows = np.zeros((5, 8, 8, 1), "float32"), np.zeros((5, 8, 8, 3), "float32")
    ModelReward(scorer)(None, rows[1], inputs=rows[0])  # five scores
    ```
    """

    def __init__(self, scorer, with_inputs=True, save_scorer=False, name=None):
        super().__init__(name=name)
        self.scorer = scorer
        self.with_inputs = with_inputs
        self.save_scorer = save_scorer

    @property
    def scorer(self):
        return self._scorer

    @scorer.setter
    def scorer(self, scorer):
        # None is what a file without the scorer leaves.
        if scorer is not None and not getattr(scorer, "built", False):
            raise ValueError(
                "`scorer` must be a built keras.Model; call it once on data to build "
                f"it. Received: {scorer!r} (of type {type(scorer).__name__})"
            )
        self._scorer = scorer

    @property
    def uses_inputs(self):
        return self.with_inputs

    @property
    def supports_jit(self):
        layers = flatten_layers(self._scorer) if self._scorer else []
        return all(layer.supports_jit for layer in layers)

    @property
    def variables(self):
        return self._scorer.variables if self._scorer else []

    @property
    def saved_variables(self):
        return self.variables if self.save_scorer else []

    def call(self, y_true, y_pred, inputs=None):
        if self._scorer is None:
            raise ValueError(
                f"Reward {self.name!r} has no scorer. A saved tuning leaves it out "
                "unless asked by `ModelReward(scorer, save_scorer=True)`: set it by "
                "`tuned.reward.scorer = scorer`. Received: scorer=None"
            )
        arguments = [inputs, y_pred] if self.with_inputs else y_pred
        scores = self._scorer(arguments, training=False)
        if len(scores.shape) == 2 and scores.shape[1] == 1:
            scores = scores[:, 0]
        return ops.cast(scores, "float32")

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "scorer": serialize(self._scorer) if self.save_scorer else None,
            "with_inputs": self.with_inputs,
            "save_scorer": self.save_scorer,
        }

    @classmethod
    def from_config(cls, config):
        scorer = config["scorer"] and keras.saving.deserialize_keras_object(
            config["scorer"]
        )
        return cls(**{**config, "scorer": scorer})
