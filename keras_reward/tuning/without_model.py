"""`RewardTuning` before it has a model."""

import inspect

import keras

from keras_reward import rewards

UNBOUND = (
    "This RewardTuning has no model yet. Call it with a keras.Model first: "
    "`tuned = RewardTuning(reward=...)(model)`; then compile and fit `tuned`."
)


class TuningWithoutModel:
    """`RewardTuning(reward=...)`, waiting to be called with a model."""

    def __init__(self, tuning_class, kwargs):
        inspect.signature(tuning_class.__init__).bind(None, **kwargs)
        check = tuning_class.check_arguments
        checked = inspect.signature(check).parameters
        check(**{name: kwargs[name] for name in checked if name in kwargs})
        rewards.get(kwargs.get("reward"))
        self._tuning_class = tuning_class
        self._kwargs = kwargs

    def __call__(self, model):
        if not isinstance(model, keras.Model):
            raise ValueError(f"{UNBOUND} Received: {type(model).__name__}")
        return self._tuning_class(model, **self._kwargs)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        raise ValueError(f"{UNBOUND} Received: `{name}` of a tuner without a model")

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self._kwargs.items())
        return f"{self._tuning_class.__name__}({arguments}), waiting for a model"
