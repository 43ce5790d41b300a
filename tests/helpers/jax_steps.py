"""A tuner's training step as JAX's compiler is given it."""

import jax


def step_arguments(tuned, images):
    """What `train_step` of a compiled tuner takes on JAX: its state and a batch."""
    tuned.optimizer.build(tuned.trainable_variables)
    state = (
        [v.value for v in tuned.trainable_variables],
        [v.value for v in tuned.non_trainable_variables],
        [v.value for v in tuned.optimizer.variables],
        [v.value for v in tuned.metrics_variables],
    )
    return state, (images,)


def temporaries(tuned, images):
    """Bytes of temporaries of one training step."""
    step = jax.jit(tuned.train_step).lower(*step_arguments(tuned, images)).compile()
    return step.memory_analysis().temp_size_in_bytes
