"""`RewardTuning` before it has a model, and the checks of its settings."""

import inspect

import keras

from keras_reward import advantages, rewards

UPDATES = ("all", "first")
UNBOUND = (
    "This RewardTuning has no model yet. Call it with a keras.Model first: "
    "`tuned = RewardTuning(reward=...)(model)`; then compile and fit `tuned`."
)


class UnboundTuning:
    """`RewardTuning(reward=...)`, waiting to be called with a model."""

    def __init__(self, tuning_class, kwargs):
        inspect.signature(tuning_class.__init__).bind(None, **kwargs)
        check_arguments(**{k: v for k, v in kwargs.items() if k in CHECKED})
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


def check_arguments(
    num_samples=2, baseline="leave_one_out", update="all", temperature=1.0
):
    """Raises a ValueError for settings that `RewardTuning` cannot work with."""
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(
            "`num_samples` must be a positive int. "
            f"Received: num_samples={num_samples!r}"
        )
    if baseline not in advantages.BASELINES:
        raise ValueError(
            f"`baseline` must be one of {advantages.BASELINES}. "
            f"Received: baseline={baseline!r}"
        )
    if baseline in ("leave_one_out", "mean") and num_samples < 2:
        raise ValueError(
            f"A {baseline} baseline needs the other samples of an input: "
            "`num_samples` must be at least 2. For a single sample choose "
            '`baseline="greedy"` or `"moving_average"`. '
            f"Received: num_samples={num_samples}"
        )
    if update not in UPDATES:
        raise ValueError(
            f"`update` must be one of {UPDATES}. Received: update={update!r}"
        )
    if not temperature > 0:
        raise ValueError(
            "`temperature` must be a positive number. "
            f"Received: temperature={temperature!r}"
        )


CHECKED = tuple(inspect.signature(check_arguments).parameters)
