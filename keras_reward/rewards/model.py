"""A frozen Keras model as a reward."""

import keras
from keras import ops

from keras_reward.backend.keras_private import flatten_layers
from keras_reward.nests import leaves_of
from keras_reward.rewards.checks import described, refuse_empty
from keras_reward.rewards.reward import Reward
from keras_reward.saved_objects import deserialized, entry, serialized
from keras_reward.symbolic import refuse_values


@keras.saving.register_keras_serializable(package="keras_reward")
class ModelReward(Reward):
    """The output of a Keras model: a classifier, a critic, a preference model.

    The model runs inside the compiled step, with `training=False` and without
    gradient. It is neither trained nor changed, not even its `trainable` flag.

    Does not punish: outputs that fool the reward model. A model that is tuned for it
    finds its weaknesses. Watch a reward that does not share them, with weight 0:
    `ModelReward(model) + 0.0 * other`.

    Args:
        model: a built `keras.Model`, or None to set it later. It is called with the
            list `[inputs, outputs]`, both in rows, and returns one number for each
            row, `(rows,)` or `(rows, 1)`.
        with_inputs: if False, the model is called with the outputs alone. Default
            True.
        save_model: if True, the model and its weights are saved in the checkpoint of a
            `RewardTuning`. Default False: after loading, set it with
            `tuned.reward.model = model` before training continues.
        name: name in the logs. Default: "model".

    Call arguments: `y_true` is not used; `y_pred` and `inputs` as the model takes
    them. Returns `(rows,)`.

    Raises:
        ValueError: if `model` is not built; in a call, if there is no model, or if it
            returns another shape.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_reward import ModelReward

    image, edited = keras.Input((8, 8, 1)), keras.Input((8, 8, 3))
    pixels = keras.layers.Concatenate()([image, edited])
    value = keras.layers.Dense(1)(keras.layers.Flatten()(pixels))
    reward_model = keras.Model([image, edited], value)

    rows = np.zeros((5, 8, 8, 1), "float32"), np.zeros((5, 8, 8, 3), "float32")
    ModelReward(reward_model)(None, rows[1], inputs=rows[0])  # five rewards
    ```
    """

    def __init__(self, model, with_inputs=True, save_model=False, name=None):
        super().__init__(name=name)
        self.model = model
        self.with_inputs = with_inputs
        self.save_model = save_model

    @property
    def model(self):
        return self._model

    @model.setter
    def model(self, model):
        # It is None after loading a file without the model.
        if model is not None and not getattr(model, "built", False):
            raise ValueError(
                "`model` must be a built keras.Model; call it once on data to build "
                f"it. Received: {model!r} (of type {type(model).__name__})"
            )
        self._model = model

    @property
    def uses_inputs(self):
        return self.with_inputs

    @property
    def supports_jit(self):
        layers = flatten_layers(self._model) if self._model else []
        return all(layer.supports_jit for layer in layers)

    @property
    def variables(self):
        return self._model.variables if self._model else []

    @property
    def saved_variables(self):
        return self.variables if self.save_model else []

    def call(self, y_true, y_pred, inputs=None):
        if self._model is None:
            raise ValueError(
                f"Reward {self.name!r} has no model. It is not saved unless you use "
                "`ModelReward(model, save_model=True)`: set it with "
                "`tuned.reward.model = model`. Received: model=None"
            )
        arguments = [inputs, y_pred] if self.with_inputs else y_pred
        for leaf in leaves_of(y_pred):
            if len(leaf.shape) == 4:  # images
                refuse_empty(self.name, "y_pred", tuple(leaf.shape))
        try:
            rewards = self._model(arguments, training=False)
        except (TypeError, ValueError) as error:
            refuse_values(f"Reward {self.name!r}", error)
            given = ", ".join(map(described, leaves_of(arguments)))
            raise ValueError(
                f"Reward {self.name!r} has a model that must take outputs of this form"
                f"{', after the inputs' if self.with_inputs else ''}. "
                f"Received: {given}, and the error {type(error).__name__}: {error}"
            ) from error
        if len(rewards.shape) == 2 and rewards.shape[1] == 1:
            rewards = rewards[:, 0]
        return ops.cast(rewards, "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "model": serialized(self._model) if self.save_model else None,
            "with_inputs": self.with_inputs,
            "save_model": self.save_model,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "model": deserialized(entry(config, "model"))})
