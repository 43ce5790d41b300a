"""Everything used here of Keras and KerasHub that they do not promise to keep.

Each function says why nothing public serves. `tests/backend/test_keras_private.py` and
`test_keras_hub_private_jax.py` hold a test for each, which says what changed. Some that
has no underscore is not documented either, and is tested there too: the attributes of
LoRA (`lora_enabled`, `lora_kernel_a`), `async_safe` of a callback, `train_function`.
"""

import inspect

# The versions on which all of this was found as it is used here.
SEEN_KERAS = ("3.12.0", "3.15.1")
SEEN_KERAS_HUB = ("0.32.0", "0.32.0")


class KeepsWeights:
    """Mixin for `keras.Model` on JAX, which holds its weights while `fit` runs.

    Keras's `fit` takes the weights out of the model before a step and gives them back
    at the end of an epoch. An error while the first step is traced, from a reward of
    the wrong shape say, would lose the model. No argument of `fit` turns that off.
    """

    def _get_jax_state(self, purge_model_variables=False, **kinds):
        del purge_model_variables
        return super()._get_jax_state(**kinds)

    def keep_weights(self):
        """Takes the weights from a loop over batches that an error ends.

        In `fit` they are in its loop until the end of an epoch.
        """
        self.jax_state_sync()


def flatten_layers(layer):
    """A layer or model and all layers within it, at any depth.

    `model.layers` has those of the top alone, and a layer does not tell its own.
    """
    return layer._flatten_layers()


def build_cache(model, *inputs):
    """The keys and values of a prompt, from a KerasHub task.

    `generate_step` fills the cache too, but gives back the text and not the cache.
    """
    _, cache = model._build_cache(*inputs)
    return cache


def build_cache_arguments(model):
    """Names of the arguments of `build_cache` beside the model; None without it.

    They differ between families of models, and nothing else tells them apart.
    """
    method = getattr(model, "_build_cache", None)
    return None if method is None else list(inspect.signature(method).parameters)


def empty_caches(model, encoded, token_ids):
    """The caches of a KerasHub Seq2SeqLM before anything is written, for the decoder.

    `generate_step` makes them too and keeps them to itself.
    """
    return model._initialize_cache(encoded, token_ids)
