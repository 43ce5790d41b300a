"""What KerasHub's tasks make of their inputs before the model sees them.

A task that has a `preprocessor` takes raw inputs: images of any size with values from 0
to 255, or strings. Its own `fit` and `predict` preprocess them in the input pipeline; a
call of the task does not. A task whose `preprocessor` is None takes what the model
takes. KerasHub itself is not imported.
"""

import warnings

import keras
import numpy as np

from keras_reward.nests import has_strings
from keras_reward.policies.keras_hub_tasks import is_language_model


def is_task(model):
    """Whether `model` is a KerasHub task, which may preprocess its inputs."""
    return callable(getattr(model, "preprocess_samples", None)) and hasattr(
        model, "preprocessor"
    )


def takes_strings(model):
    """Whether the preprocessor of a task has a tokenizer."""
    return getattr(model.preprocessor, "tokenizer", None) is not None


def is_raw(model, x):
    """Whether the inputs `x` of a model are to be preprocessed.

    The token ids of a task of text tell that its inputs are preprocessed already.
    Nothing tells it of images, so those are raw, as in KerasHub.
    """
    if not is_task(model):
        return False
    if model.preprocessor is None:
        if has_strings(x):
            raise ValueError(
                f"Task {model.name!r} has no preprocessor, so it takes token ids. Set "
                "`task.preprocessor`, or tokenize the strings. "
                "Received: strings, and preprocessor=None"
            )
        return False
    return has_strings(x) if takes_strings(model) else True


def preprocess(model, x, y=None, sample_weight=None):
    """A batch as the model and the reward take it, from a raw one.

    Args:
        model: a KerasHub task with a preprocessor.
        x: raw inputs.
        y: targets, or None. Of an image task they take the way that they take in its
            own `fit`, where a preprocessor may resize them with the images.
        sample_weight: weights, or None.

    Returns:
        `(x, y, sample_weight)`.
    """
    if is_language_model(model):
        # Called for training, its preprocessor would make targets of the prompts.
        return model.preprocessor.generate_preprocess(x), y, sample_weight
    batch = model.preprocess_samples(x, y, sample_weight)
    return keras.utils.unpack_x_y_sample_weight(batch)


def check_call(model, x):
    """Raises if a call of a tuner, which does not preprocess, gets strings."""
    if is_task(model) and has_strings(x):
        raise ValueError(
            "A call takes what the model takes, without preprocessing. Use `predict`, "
            "or `predict_on_batch`. Received: strings"
        )


def check_strings(model, y):
    """Raises if the targets of a language model are strings."""
    if is_task(model) and is_language_model(model) and has_strings(y):
        raise ValueError(
            f"Task {model.name!r} answers in token ids, so references must be token "
            "ids too. Make them with `keras_hub.layers.StartEndPacker(length, "
            "end_value=tokenizer.end_token_id, pad_value=tokenizer.pad_token_id)"
            "(tokenizer(texts))`, where `tokenizer = task.preprocessor.tokenizer`. "
            "Received: y of strings"
        )


def check_range(model, x):
    """Refuses raw images that have been preprocessed, as far as values tell.

    Looks at the first image. Normalized colours lie in [-3, 3], and some are negative,
    which raw ones are not.
    """
    converter = getattr(model.preprocessor, "image_converter", None)
    scale = getattr(converter, "scale", None)
    images = x.get("images") if isinstance(x, dict) else x
    is_float = getattr(getattr(images, "dtype", None), "kind", None) == "f"
    if not is_float or scale is None or np.max(np.abs(scale)) > 0.1:
        return
    low, high = float(images[:1].min()), float(images[:1].max())
    what = (
        f"The preprocessor of task {model.name!r} takes images with values from 0 to "
        "255. If they are preprocessed already, set `task.preprocessor = None`"
    )
    received = f"Received: values from {low:.3g} to {high:.3g}"
    if -3.0 <= low < 0.0 and high <= 3.0:
        raise ValueError(f"{what}. {received}")
    if low >= 0.0 and 0.0 < high <= 1.0:
        warnings.warn(f"{what}; else multiply them by 255. {received}", stacklevel=2)
