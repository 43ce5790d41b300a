"""More entropy: keeps a policy from becoming certain too early."""

import keras
from keras import ops

from keras_reward.terms.term import Term


@keras.saving.register_keras_serializable(package="keras_reward")
class Entropy(Term):
    """Minus the policy's mean entropy per position, in nats.

    Raises the entropy, so that samples stay different from one another. `entropy` is
    logged with and without this term.

    Args:
        weight: what it is multiplied by. Default 0.01.
        name: optional name.

    Reference: Williams & Peng 1991, "Function Optimization Using Connectionist
    Reinforcement Learning Algorithms".
    """

    uses_entropy = True
    log_names = ()

    def __init__(self, weight=0.01, name=None, **kwargs):
        super().__init__(weight, name=name, **kwargs)

    def loss(self, update):
        return -ops.mean(update.likelihood.entropy), {}
