"""A tuner's training step as JAX's compiler is given it."""

import jax


def step_arguments(tuned, *data):
    """What `train_step` of a compiled tuner takes on JAX: its state and a batch."""
    tuned.optimizer.build(tuned.trainable_variables)
    state = (
        [v.value for v in tuned.trainable_variables],
        [v.value for v in tuned.non_trainable_variables],
        [v.value for v in tuned.optimizer.variables],
        [v.value for v in tuned.metrics_variables],
    )
    return state, data


def temporaries(tuned, images):
    """Bytes of temporaries of one training step."""
    return memory(tuned, images).temp_size_in_bytes


def planned(tuned, data):
    """Bytes of temporaries and of results of one training step.

    Args:
        tuned: a compiled tuner.
        data: a batch, such as `(x, y)`.
    """
    analysis = memory(tuned, *data)
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def memory(tuned, *data):
    """What JAX's compiler says about the memory of one training step."""
    step = jax.jit(tuned.train_step).lower(*step_arguments(tuned, *data)).compile()
    return step.memory_analysis()
