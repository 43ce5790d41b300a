"""The reward tuning step on PyTorch."""

import torch


class RewardTrainer:
    """Mixin for `keras.Model`: one step of reward tuning."""

    def train_step(self, data):
        self.zero_grad()
        loss = self.training_loss(data, no_gradient)
        self.optimizer.scale_loss(loss).backward()
        weights = self.trainable_weights
        gradients = [weight.value.grad for weight in weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, weights)
        return self.training_logs()


def no_gradient(function, *args):
    """Calls a function without recording it: `stop_gradient` alone would record."""
    with torch.no_grad():
        return function(*args)
