"""All private parts of Keras and KerasHub that are used here, and may change.

Each function says why nothing public is enough. `tests/backend/test_keras_private.py`
and `test_keras_hub_private_jax.py` have a test for each, which says what changed. They
also test a few public but undocumented attributes: those of LoRA (`lora_enabled`,
`lora_kernel_a`), `async_safe` of a callback, and `train_function`.
"""

import inspect

# The versions with which all of this was tested.
SEEN_KERAS = ("3.12.0", "3.15.1")
SEEN_KERAS_HUB = ("0.32.0", "0.32.0")


class KeepsWeights:
    """Mixin for `keras.Model` on JAX, which keeps its weights while `fit` runs.

    Keras's `fit` removes the weights from the model before a step and restores them at
    the end of an epoch. An error while the first step is traced, for example from a
    reward of the wrong shape, would lose them. No argument of `fit` turns this off.
    """

    def _get_jax_state(self, purge_model_variables=False, **kinds):
        del purge_model_variables
        return super()._get_jax_state(**kinds)

    def keep_weights(self):
        """Restores the weights when an error ends a loop over batches.

        During an epoch of `fit`, only its loop has them.
        """
        self.jax_state_sync()


def flatten_layers(layer):
    """A layer or model and all layers within it, at any depth.

    `model.layers` has only those of the top level, and a layer has no such list.
    """
    return layer._flatten_layers()


def producer_of(tensor):
    """The operation that made a symbolic tensor, and what it was given.

    `operation.output` is that of the operation's first call, and models and layers are
    called several times.

    Returns:
        The operation, None at the start of a graph, the list of its symbolic inputs,
        and the tensor's index among its outputs.
    """
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None, [], 0
    node = history.operation._inbound_nodes[history.node_index]
    return history.operation, list(node.input_tensors), history.tensor_index


def build_cache(model, *inputs):
    """The keys and values of a prompt, from a KerasHub task.

    `generate_step` fills the cache too, but does not return it.
    """
    _, cache = model._build_cache(*inputs)
    return cache


def build_cache_arguments(model):
    """Names of the arguments of `build_cache` besides the model; None without it.

    They differ between families of models, which nothing else distinguishes.
    """
    method = getattr(model, "_build_cache", None)
    return None if method is None else list(inspect.signature(method).parameters)


def empty_caches(model, encoded, token_ids):
    """The initial decoder caches of a KerasHub Seq2SeqLM.

    `generate_step` makes them too, but does not return them.
    """
    return model._initialize_cache(encoded, token_ids)
