"""The reward tuning step on TensorFlow."""

import tensorflow as tf


class RewardTrainer:
    """Mixin for `keras.Model`: one step of reward tuning."""

    def train_step(self, data):
        with tf.GradientTape() as tape:

            def no_gradient(function, *args):
                with tape.stop_recording():
                    return function(*args)

            loss = self.training_loss(data, no_gradient)
            # Replicas sum their gradients; the loss is a mean over each one's batch.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            loss = self.optimizer.scale_loss(loss / replicas)
        weights = self.trainable_weights
        gradients = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return self.training_logs()
