"""Configs of objects in saved files, and what Keras will find when it loads them."""

import re
import types
import warnings

import keras

# Packages whose classes Keras finds without registration.
LIBRARIES = ("keras", "keras_hub", "keras_cv", "keras_nlp")


class NotRegisteredWarning(UserWarning):
    """A function or class that is saved by its name, which Keras does not know."""


def deserialized(value, custom_objects=None):
    """Deserialises a config to its object; returns an object unchanged.

    Raises:
        ValueError: for a function or class that Keras does not know.
    """
    if not isinstance(value, dict):
        return value
    deserialize = keras.saving.deserialize_keras_object
    try:
        return deserialize(value, custom_objects=custom_objects)
    except TypeError as error:
        # Keras may have put the message of an inner `deserialized` into its own.
        missing = re.search(
            r"(?:Could not locate|The) (\w+) '([^']+)'(?:\.| must be reg)", str(error)
        )
        if missing is None:
            raise
        kind, name = missing.groups()
        raise ValueError(
            f"The {kind} {name!r} must be registered with Keras: import what defines "
            "it, with `@keras.saving.register_keras_serializable()` above it, or pass "
            f"`custom_objects={{{name!r}: {name.split('>')[-1]}}}` to "
            f"`keras.saving.load_model`. Received: a file or config with {name!r}"
        ) from None  # Keras's message has the whole config


def entry(config, name):
    """What the config of an object says under a name.

    Raises:
        ValueError: if it says nothing.
    """
    if not isinstance(config, dict) or name not in config:
        held = list(config) if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"The config of a saved object must have {name!r}. Load a file as it was "
            f"saved. Received: {ascii(held)[:200]}"
        )
    return config[name]


def serialized(value):
    """The config of an object, of the user's perhaps; warns if it will not load."""
    own = value if isinstance(value, types.FunctionType) else type(value)
    if (own is value or hasattr(value, "get_config")) and not is_found(own):
        warn_not_registered([own.__name__])
    return keras.saving.serialize_keras_object(value)


def is_found(own):
    """Whether Keras finds a function or class when it loads a file, by its name."""
    known = keras.saving.get_registered_object(keras.saving.get_registered_name(own))
    # Keras itself warns of a lambda, and finds what is in its own packages.
    is_lambda = not own.__name__.isidentifier()
    return known is own or is_lambda or own.__module__.split(".")[0] in LIBRARIES


def warn_not_registered(names):
    """Warns that functions or classes of these names will not be found."""
    given = ", ".join(f"{name!r}: {name}" for name in names)
    warnings.warn(
        f"{names[0]!r} is not registered with Keras, so a saved file loads only with "
        f"`custom_objects={{{given}}}`. Put "
        "`@keras.saving.register_keras_serializable()` above its definition.",
        NotRegisteredWarning,
        stacklevel=3,
    )
