"""An entropy bonus, which keeps a policy from becoming certain too early."""

import keras
from keras import ops

from keras_reward.terms.term import Term


@keras.saving.register_keras_serializable(package="keras_reward")
class Entropy(Term):
    """Minus the policy's mean entropy per position, in nats.

    Minimizing it raises the entropy, so that samples stay diverse. `entropy` is logged
    with and without this term.

    Args:
        weight: factor of the term. Default 0.01.
        name: optional name.

    Example:

    ```python
    from keras_reward import Entropy

    term = Entropy(0.01)
    # RewardTuning(model, reward=..., terms=[term])
    ```

    Reference: Williams & Peng 1991, "Function Optimization Using Connectionist
    Reinforcement Learning Algorithms".
    """

    uses_entropy = True
    log_names = ()

    def __init__(self, weight=0.01, name=None, **kwargs):
        super().__init__(weight, name=name, **kwargs)

    def loss(self, update):
        return -ops.mean(update.likelihood.entropy), {}
