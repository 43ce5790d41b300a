"""The reward tuning step on TensorFlow."""

import tensorflow as tf

XLA_CALLS_HOST = False
LOOPS_RECOMPUTE = False


class RewardTrainer:
    """Mixin for `keras.Model`: one step of reward tuning."""

    def keep_weights(self):
        """Does nothing: a step writes to the model's own variables."""

    def train_step(self, data):
        with tf.GradientTape() as tape:

            def no_gradient(function, *args):
                with tape.stop_recording():
                    return function(*args)

            loss = self.training_loss(data, no_gradient)
            # Replicas sum their gradients; each loss is a mean over its own batch.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = self.optimizer.scale_loss(loss / replicas)
        weights = self.trainable_weights
        gradients = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return self.training_logs()


def host_call(function, tensors, shape):
    """Calls a function of NumPy arrays that returns one, from a compiled step.

    Args:
        function: takes an array for each of `tensors`.
        tensors: list of tensors.
        shape: shape of the float32 array that it returns, with None for unknown sizes.

    Returns:
        A float32 tensor.
    """
    result = tf.numpy_function(function, tensors, tf.float32)
    return tf.ensure_shape(result, shape)
