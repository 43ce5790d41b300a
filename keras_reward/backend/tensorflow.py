"""The reward tuning step on TensorFlow."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from keras_reward.backend.keras_private import StartsAtBatch, flatten_layers

XLA_CALLS_HOST = False
LOOPS_RECOMPUTE = False
NO_VALUES = (
    tf.errors.OperatorNotAllowedInGraphError,
    NotImplementedError,
    TypeError,
    AttributeError,
)


class RewardTrainer(StartsAtBatch):
    """Mixin for `keras.Model`: one step of reward tuning."""

    def keep_weights(self):
        """Nothing to do: a step writes the model's own variables."""

    def has_weights(self):
        """True: a step writes to the model's own variables."""
        return True

    def is_out_of_memory(self, error):
        """Whether an exception says that a step needs more memory than there is."""
        return isinstance(error, tf.errors.ResourceExhaustedError)

    def variable_scope(self):
        """Where a model that is called outside of its loops makes its variables."""
        return self.distribute_strategy.scope()

    def of_one_replica(self, batch):
        """What one replica gets of a batch from a distributed dataset."""
        parts = self.distribute_strategy.experimental_local_results
        return keras.tree.map_structure(lambda leaf: parts(leaf)[0], batch)

    def data_for_fit(self, data):
        """What `fit` gets instead of an `OrderedData`.

        Of arrays, a `tf.data.Dataset`, which knows the number of rows of a batch if
        all have the same, and fetches ahead outside of Python.
        """
        arrays = getattr(data.dataset, "arrays", None)
        if arrays is None or data.dataset.function is not None:
            return data
        return pipeline(data)

    def random_state(self):
        """Random state outside of variables, a list of NumPy arrays: here, none."""
        return []

    def number_of_processes(self):
        """How many processes train one model: here, several are not supported."""
        return 1

    def set_random_state(self, state):
        """Sets what `random_state` returned."""

    def make_train_function(self, force=False):
        """Builds the optimizer before the step is traced.

        A step that creates variables, as the optimizer's, is traced twice.
        """
        optimizer = self.optimizer
        is_missing = optimizer is not None and not optimizer.built
        # If a layer is not built either, calling it will add weights.
        if is_missing and all(layer.built for layer in flatten_layers(self)):
            with self.distribute_strategy.scope():
                optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def train_step(self, data):
        return self.training_step(data, lambda loss: descend(self, loss))


def pipeline(data):
    """A `tf.data.Dataset` of the batches of an `OrderedData` of arrays."""
    arrays = data.dataset

    def rows():
        """The rows of an epoch, those of each pass over the arrays in one piece."""
        places = map(data.place, range(data.num_batches))
        for number, group in itertools.groupby(places, lambda place: place[0]):
            yield np.concatenate([arrays.row_numbers(number, i) for _, i in group])

    def cut(order):
        if arrays.static_size is None:
            return tf.data.Dataset.from_tensor_slices(order).batch(arrays.batch_size)
        order = tf.reshape(order, (-1, arrays.static_size))
        return tf.data.Dataset.from_tensor_slices(order)

    def gather(part, held):
        return keras.tree.map_structure(
            lambda leaf: None if leaf is None else tf.gather(leaf, part), held
        )

    spec = tf.TensorSpec((None,), tf.int64)
    parts = tf.data.Dataset.from_generator(rows, output_signature=spec).flat_map(cut)
    held = keras.utils.pack_x_y_sample_weight(*arrays.arrays)
    held = tf.data.Dataset.from_tensors(held if type(held) is tuple else (held,))
    batches = tf.data.Dataset.zip((parts, held.repeat()))
    batches = batches.map(gather, num_parallel_calls=tf.data.AUTOTUNE)
    # An epoch that begins later ends before it would notice that some are missing.
    batches = batches.apply(tf.data.experimental.assert_cardinality(data.num_batches))
    options = tf.data.Options()
    # As in Keras: they would copy the graph, with all of the arrays in it.
    options.experimental_optimization.apply_default_optimizations = False
    sharding = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = sharding
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


def descend(model, loss_function):
    """Differentiates a loss and takes a step of the optimizer.

    Args:
        model: a `keras.Model`.
        loss_function: takes `no_gradient` and returns a scalar and a nest of tensors.

    Returns:
        The nest.
    """
    optimizer = model.optimizer
    with tf.GradientTape() as tape:

        def no_gradient(function, *args):
            with tape.stop_recording():
                return function(*args)

        loss, result = loss_function(no_gradient)
        # Replicas sum their gradients; the loss is a mean over each one's batch.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        scaled = optimizer.scale_loss(loss / replicas)
    weights = model.trainable_weights  # now that the model is built
    if not weights:
        model.warn_untrainable()
        return result
    gradients = tape.gradient(scaled, weights)
    optimizer.apply_gradients(zip(gradients, weights, strict=True))
    return result


def is_exporting():
    """False: loops are exported as they are."""
    return False


def without_recording(function, *args):
    """Calls a function in a thread that records no gradient: here, none does."""
    return function(*args)


def asks_for_values(error):
    """Whether an exception was raised for the values of a symbolic tensor."""
    return isinstance(error, NO_VALUES) and "symbolic" in str(error).lower()


def host_call(function, tensors, shape):
    """Calls a function of NumPy arrays that returns one, from a compiled step.

    Args:
        function: takes an array for each of `tensors`.
        tensors: list of tensors.
        shape: shape of what it returns, in float32; None where only the run will tell.

    Returns:
        A float32 tensor.
    """
    result = tf.numpy_function(function, tensors, tf.float32)
    return tf.ensure_shape(result, shape)
