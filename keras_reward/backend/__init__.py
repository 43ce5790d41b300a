"""The one place that knows a backend.

Each module overrides Keras's `train_step` for its backend as a mixin `RewardTrainer`.
A step is the same everywhere: `RewardTuning.training_loss` under the gradient, with a
`no_gradient(function, *args)` for what is sampled and rewarded, then Keras's own
optimizer.
"""

import keras

if keras.config.backend() == "jax":
    from keras_reward.backend.jax import RewardTrainer
elif keras.config.backend() == "tensorflow":
    from keras_reward.backend.tensorflow import RewardTrainer
elif keras.config.backend() == "torch":
    from keras_reward.backend.torch import RewardTrainer
else:
    raise ImportError(
        "keras_reward trains on the Keras backends jax, tensorflow and torch. "
        f"Received: keras.config.backend() == {keras.config.backend()!r}"
    )
