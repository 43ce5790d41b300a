"""All private parts of Keras and KerasHub that are used here, and may change.

Each function says why nothing public is enough. `tests/backend/test_keras_private.py`
and `test_keras_hub_private_jax.py` have a test for each, which says what changed. They
also test a few public but undocumented attributes: those of LoRA (`lora_enabled`,
`lora_kernel_a`), `async_safe` of a callback, and `train_function`.
"""

import contextlib
import inspect
import queue
from typing import NamedTuple

import keras
from keras.src.utils import io_utils

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

    def jax_state_sync(self):
        """As Keras's, but leaves out what a failed step has taken and not returned.

        Keras would raise, when it ends `fit`, and hide the error of the step.
        """
        state = getattr(self, "_jax_state", None) or {}
        if not any(map(is_taken, keras.tree.flatten(state))):
            super().jax_state_sync()


def is_taken(value):
    """Whether a step on JAX has reused the memory of an array."""
    return hasattr(value, "is_deleted") and value.is_deleted()


class ReadsBatches:
    """Mixin for `keras.Model` on JAX: `read_targets(y)` gets targets before the step.

    Elsewhere a step gets integers of 64 bits. On JAX they lose half of them on their
    way into the step, or onto the device before. Nothing public comes between a dataset
    and the step.
    """

    def _symbolic_build(self, iterator=None, data_batch=None):
        adapter = getattr(iterator, "data_adapter", None)
        if adapter is not None and "get_jax_iterator" not in vars(adapter):
            batches = adapter.get_jax_iterator
            adapter.get_jax_iterator = lambda: map(self.read_batch, batches())
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)

    def read_batch(self, batch):
        """A batch of `fit` or `evaluate`, with what `read_targets` returns."""
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            return batch
        return (batch[0], self.read_targets(batch[1]), *batch[2:])


class Start(NamedTuple):
    """Where the first epoch of `fit` begins.

    Attributes:
        batch: number of its first batch.
        skipped: how many batches of the data to pass over, if they do not begin there.
        passed: how many batches of the current pass over the data lie before.
    """

    batch: int
    skipped: int = 0
    passed: int = 0


class StartsAtBatch:
    """Mixin for `keras.Model`: the next `fit` begins at a batch of its first epoch.

    Keras counts batches from 0, and a callback cannot tell it otherwise. Nothing public
    comes between `fit` and what counts them.
    """

    starts_at = None  # of the next `fit`: a `Start`

    def _symbolic_build(self, iterator=None, data_batch=None):
        super()._symbolic_build(iterator=iterator, data_batch=data_batch)
        self._start_iterator(iterator)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
        self._start_iterator(iterator)

    def _start_iterator(self, iterator):
        """Prepares what `fit` counts batches with, when the model is built."""
        if iterator is None:
            return
        if getattr(iterator.data_adapter, "enqueuer", None) is not None:
            forget_fetched(iterator.data_adapter)
        start = self.starts_at
        if start is not None:
            self.starts_at = None
            start_at(iterator, start)


def forget_fetched(adapter):
    """Lets each pass over a `PyDataset` with workers begin with its own batches.

    What workers had fetched when a pass was cut short, as the one that builds the
    model, would come first in the next one.
    """
    if adapter.num_batches is None:
        return
    begin = adapter.on_epoch_begin

    def begin_afresh():
        adapter.enqueuer.ready_queue = queue.Queue()
        begin()

    adapter.on_epoch_begin = begin_afresh


def start_at(iterator, start):
    """Makes the first pass of an iterator over epochs begin at a batch.

    Args:
        iterator: Keras's `EpochIterator`.
        start: a `Start`.
    """
    whole = iterator._enumerate_iterator

    def rest():
        del iterator._enumerate_iterator  # the next passes are whole
        steps = iterator.steps_per_epoch
        if steps:
            iterator.steps_per_epoch = steps - start.batch
        try:
            for begin, end, data in whole():
                if begin == 0:
                    for _ in range(start.skipped):
                        next(data)
                iterator._steps_seen = start.passed + end + 1
                yield begin + start.batch, end + start.batch, data
        finally:
            iterator.steps_per_epoch = steps

    iterator._enumerate_iterator = rest


def print_message(message):
    """Prints a line where Keras's progress bar goes, or logs it if bars are turned off.

    Keras has this in no public place.
    """
    io_utils.print_msg(message)


def may_overwrite(path):
    """Asks on the terminal whether a file may be overwritten, as `Model.save` does.

    Keras asks only about the path that it writes to itself.
    """
    return io_utils.ask_to_proceed_with_overwrite(str(path))


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


def has_compiled_metrics(model):
    """Whether `compile` was given metrics.

    `Model.metrics` has them only once they are built.
    """
    compiled = getattr(model, "_compile_metrics", None)
    return compiled is not None and bool(
        compiled._user_metrics or compiled._user_weighted_metrics
    )


def metrics_of_steps(model):
    """The metrics of a model that its training steps update: not the compiled ones.

    `Model.metrics` has both.
    """
    compiled = getattr(model, "_compile_metrics", None)
    return [metric for metric in model.metrics if metric is not compiled]


def build_compiled_metrics(model, y, outputs, named):
    """The metrics given to `compile`, each with its target and output.

    Keras resolves the names of metrics when it builds them in a step, and only it
    knows which of several outputs each metric is for.

    Args:
        model: a `keras.Model` with compiled metrics.
        y: targets.
        outputs: a nest of tensors.
        named: from a metric given to `compile` to what Keras is to build it from.

    Returns:
        List of `(metric, target, output)`.
    """
    compiled = model._compile_metrics
    if not compiled.built:
        for kind in ("_user_metrics", "_user_weighted_metrics"):
            given = getattr(compiled, kind)
            setattr(compiled, kind, keras.tree.map_structure(named, given))
        compiled.build(y, outputs)
    pairs = [*zip(compiled._flatten_y(y), compiled._flatten_y(outputs), strict=False)]
    return [
        (metric, *pair)
        for kind in (compiled._flat_metrics, compiled._flat_weighted_metrics)
        for built, pair in zip(kind, pairs, strict=False)
        for metric in (built.metrics if built else ())
    ]


def build_compiled_loss(model):
    """Builds the losses that a model of several named outputs was compiled with.

    Keras does it in the first step, with a metric for each. Variables that are made
    while another model's step is traced cannot be used after it.
    """
    compiled = model._compile_loss
    if compiled is not None and not compiled.built and isinstance(model.loss, dict):
        some = {name: keras.ops.zeros((1, 1)) for name in model.loss}
        compiled.build(some, some)


@contextlib.contextmanager
def without_loss_metrics(model):
    """Within it, the losses that a model was compiled with keep no metrics.

    A step that is not the model's own does not know them, so on JAX it would fail. No
    argument of `compile` or `compute_loss` turns them off.
    """
    compiled = model._compile_loss
    kept = compiled._metrics
    compiled._metrics = [None] * len(kept)
    try:
        yield
    finally:
        compiled._metrics = kept


def wrapped_function(metric):
    """The function whose mean a Keras metric is, or None.

    `get_config` of a metric that Keras defines leaves it out.
    """
    return getattr(metric, "_fn", None)


def variables_of_optimizer(optimizer):
    """The variables that a built optimizer updates, in its order."""
    return list(optimizer._trainable_variables)


def structure_of_inputs(model):
    """The symbolic inputs of a functional or Sequential model, nested; else None.

    `Model.inputs` has lost their structure.
    """
    if isinstance(model, keras.Sequential):
        return model.inputs[0] if model.built else None
    return getattr(model, "_inputs_struct", None)
