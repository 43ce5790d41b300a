"""All code that depends on the backend.

Each module overrides Keras's `train_step` for its backend in a mixin `RewardTrainer`.
What a step does is the same everywhere, `TrainingStep.training_step`. It gets
`descend(loss)`, which differentiates a loss and takes a step of the optimizer. The loss
gets `no_gradient(function, *args)`, for sampling and rewards, and returns a scalar and
what `descend` is to return. `keep_weights` lets the model keep its weights when a step
is interrupted, `has_weights` says whether it has them, and `is_out_of_memory(error)`
whether a step needed more memory than there is. Within `variable_scope()` a model may
be called for the first time outside of a step, with `of_one_replica(batch)`. On other
backends of Keras, which only run a model, training raises an error.

`host_call(function, tensors, shape)` calls a Python function of NumPy arrays from
within the step. `XLA_CALLS_HOST` says whether a step compiled by XLA can do that.
`asks_for_values(error)` says whether an exception comes from a function that needs the
values of a tensor where there are none, as while a step is traced. `LOOPS_RECOMPUTE`
says whether a compiled loop can go around a function that reads variables and whose
gradient computes it anew (`keras.remat`). `is_exporting()` says whether a model is
being traced for an export that has no loops. `without_recording(function, *args)` calls
a function in a thread of its own, as the step would.
"""

import keras

if keras.config.backend() == "jax":
    from keras_reward.backend.jax import (
        LOOPS_RECOMPUTE,
        XLA_CALLS_HOST,
        RewardTrainer,
        asks_for_values,
        host_call,
        is_exporting,
        without_recording,
    )
elif keras.config.backend() == "tensorflow":
    from keras_reward.backend.tensorflow import (
        LOOPS_RECOMPUTE,
        XLA_CALLS_HOST,
        RewardTrainer,
        asks_for_values,
        host_call,
        is_exporting,
        without_recording,
    )
elif keras.config.backend() == "torch":
    from keras_reward.backend.torch import (
        LOOPS_RECOMPUTE,
        XLA_CALLS_HOST,
        RewardTrainer,
        asks_for_values,
        host_call,
        is_exporting,
        without_recording,
    )
else:
    from keras_reward.backend.evaluation_only import (
        LOOPS_RECOMPUTE,
        XLA_CALLS_HOST,
        RewardTrainer,
        asks_for_values,
        host_call,
        is_exporting,
        without_recording,
    )
