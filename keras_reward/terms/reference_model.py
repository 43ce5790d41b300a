"""A frozen model beside the tuned one."""

import keras

MISSING = "missing"  # stands in a saved config for a reference model not in the file


class ReferenceModel:
    """A frozen model beside the tuned one, with a policy of the same settings.

    Not a layer, so that Keras counts its weights neither as the tuner's nor into its
    files.

    Args:
        model: a built `keras.Model`, or None where a file came without it.
        policy: its policy.
        save: whether it enters the tuner's checkpoint.
    """

    def __init__(self, model, policy, save):
        self.model = model
        self.policy = policy
        self.save = save

    @property
    def variables(self):
        """What a compiled step reads beside the tuner's own variables."""
        if self.model is None:
            return []
        return [*self.model.variables, *self.policy.variables]

    @property
    def saved_variables(self):
        """Those that enter the checkpoint, by name."""
        return {str(i): v for i, v in enumerate(self.variables if self.save else ())}

    def position_log_probs(self, x, samples):
        """Log-probabilities of the positions of samples: `(batch, n, ...)`.

        One forward pass: nothing is sampled from the reference model.
        """
        context = self.policy.encode(x, training=False)
        return self.policy.likelihood(context, samples).position_log_probs

    def ready(self):
        """Called before training: raises if there is nothing to be close to."""
        if self.model is None:
            raise ValueError(
                "This tuning was loaded from a file without its reference model, "
                "which is left out unless `KL(..., save=True)`. Set it by "
                "`set_reference_model(model)` of the KL term, in `tuned.terms`. "
                "Received: no reference model"
            )
        self.restore()

    def begin_loading(self):
        """Called before variables are read from a file."""

    def restore(self):
        """What is left to do after loading a file, before training goes on."""

    def get_config(self):
        """What stands for it in the tuner's config."""
        if self.model is None or not self.save:
            return MISSING
        return keras.saving.serialize_keras_object(self.model)


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
