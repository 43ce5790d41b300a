"""A frozen model that the tuned model is compared with."""

import keras

from keras_reward.saved_objects import serialized

MISSING = "missing"  # in a saved config: the reference model is not in the file


class ReferenceModel:
    """A frozen model, with a policy of the same settings as the tuned model's.

    It is not a layer, so that Keras does not add its weights to the tuner's weights and
    files.

    Args:
        model: a built `keras.Model`, or None if it was loaded from a file without it.
        policy: its policy.
        save: whether it is saved in the tuner's checkpoint.
    """

    def __init__(self, model, policy, save):
        self.model = model
        self.policy = policy
        self.save = save

    @property
    def variables(self):
        """The variables that a compiled step reads besides the tuner's own."""
        if self.model is None:
            return []
        return [*self.model.variables, *self.policy.variables]

    @property
    def saved_variables(self):
        """The variables that are saved in the checkpoint, by name."""
        return {str(i): v for i, v in enumerate(self.variables if self.save else ())}

    @property
    def run_variables(self):
        """Those that a `Checkpoint` keeps."""
        return self.variables if self.save else []

    def position_log_probs(self, x, samples):
        """Log-probabilities of the positions of samples: `(batch, n, ...)`.

        One forward pass: nothing is sampled from the reference model.
        """
        context = self.policy.encode(x, training=False)
        return self.policy.likelihood(context, samples).position_log_probs

    def ready(self):
        """Called before training: raises if there is no reference model."""
        if self.model is None:
            raise ValueError(
                "This tuning was loaded from a file without its reference model, "
                "which is left out unless `KL(..., save=True)`. Set it with "
                "`set_reference_model(model)` of the KL term, in `tuned.terms`. "
                "Received: no reference model"
            )
        self.restore()

    def begin_loading(self):
        """Called before variables are read from a file."""

    def restore(self):
        """Finishes loading a file, before training continues."""

    def get_config(self):
        """What represents it in the tuner's config."""
        if self.model is None or not self.save:
            return MISSING
        return serialized(self.model)


def copy_model(model):
    """A model of the same kind with the same weights."""
    if not model.built:
        raise ValueError(
            '`KL("copy")` copies the weights, and the model has none yet: call '
            f"it once on data to build it. Received: model {model.name!r}"
        )
    try:
        if isinstance(model, keras.Sequential) or hasattr(model, "operations"):
            twin = keras.models.clone_model(model)
        else:
            twin = type(model).from_config(model.get_config())
        if not twin.built:
            twin.build_from_config(model.get_build_config())
        twin.set_weights(model.get_weights())
    except Exception as error:
        raise ValueError(
            f"Model {model.name!r} cannot be copied by its `get_config`. Pass a frozen "
            "model: `KL(frozen)`; for a model with LoRA adapters, "
            f'`KL("lora_base")`. Received: {type(error).__name__}: {error}'
        ) from error
    return twin
