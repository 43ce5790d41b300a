"""What is said to a function that asks tensors for values which they do not have."""

import re

from keras_reward.backend import asks_for_values

# Of NumPy arrays and of some tensors outside a step.
NUMPY_METHODS = r"attribute '?(numpy|tolist|astype|item|copy)\b"


def refuse_values(what, error, advice=""):
    """Raises an error that says what to do, if another one is of this kind.

    Args:
        what: what was called, to begin the message with.
        error: the exception that it raised.
        advice: what else can be done than to write it in `keras.ops`.
    """
    text = str(error)
    of_numpy = isinstance(error, AttributeError) and re.search(NUMPY_METHODS, text)
    if not of_numpy and not asks_for_values(error):
        return
    first = text.strip().splitlines()[0]
    raise ValueError(
        f"{what} asks for the values of a tensor, as NumPy and Python do: in a step, "
        "tensors may have none, or are not in the host's memory. Write it in "
        f"`keras.ops`{advice}. Received: {type(error).__name__}: {first}"
    ) from error
