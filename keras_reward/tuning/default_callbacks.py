"""The callbacks that `RewardTuning` adds to the user's."""

import inspect

import keras

from keras_reward.callbacks.host_failure import HostFailure
from keras_reward.callbacks.interruption import with_interruption
from keras_reward.callbacks.no_reward import NoRewardWarning
from keras_reward.callbacks.progress import RewardProgress


def with_callbacks(method, model, args, kwargs):
    """The arguments of `fit` or `evaluate`, with the callbacks of `RewardTuning`."""
    bound = inspect.signature(method).bind(model, *args, **kwargs)
    weighted = bound.arguments.get("sample_weight") is not None
    if weighted and bound.arguments.get("y") is None:
        raise ValueError(
            "Keras drops `sample_weight` where there is no `y`. Pass a `y` with one "
            "row for each input; the reward need not use it. "
            "Received: sample_weight, and y=None"
        )
    if method is keras.Model.fit and bound.arguments.get("verbose") != 0:
        model.say_credit()
    callbacks = with_interruption(bound.arguments.get("callbacks"), model)
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(NoRewardWarning())
        if model.reward.runs_on_host:
            callbacks.append(HostFailure())
        has_bar = any(isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks)
        if bound.arguments.get("verbose") != 0 and not has_bar:
            callbacks.append(RewardProgress())
        bound.arguments["callbacks"] = callbacks
    return bound.args[1:], bound.kwargs
