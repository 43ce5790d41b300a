"""The metrics given to `compile`, which compare targets with what `predict` returns.

Keras chooses metrics for models that return scores of classes. `predict` returns what
was chosen, such as class indices, of which an argmax or a logarithm has no meaning.
"""

import functools

import keras

from keras_reward.backend.keras_private import (
    build_compiled_metrics,
    has_compiled_metrics,
    wrapped_function,
)
from keras_reward.nests import dtype_of, is_float, may_be_equal
from keras_reward.policies.activations import symbolic_output
from keras_reward.policies.factorized import CategoricalPolicy
from keras_reward.policies.multi_output import MultiOutputPolicy
from keras_reward.policies.tokens import TokenPolicy

ACCURACY = "Use `keras.metrics.Accuracy()`, the share of equal ids"
IOU = "Use `keras.metrics.MeanIoU(num_classes)`, which compares ids"
NEITHER = "No such metric reads ids"

# Functions that read the scores of classes, by the advice on what to use instead.
SCORES = {
    "categorical_accuracy": ACCURACY,
    "sparse_categorical_accuracy": ACCURACY,
    "top_k_categorical_accuracy": ACCURACY,
    "sparse_top_k_categorical_accuracy": ACCURACY,
    "categorical_crossentropy": NEITHER,
    "sparse_categorical_crossentropy": NEITHER,
    "binary_crossentropy": NEITHER,
    "categorical_focal_crossentropy": NEITHER,
    "binary_focal_crossentropy": NEITHER,
    "kl_divergence": NEITHER,
    "categorical_hinge": NEITHER,
    "hinge": NEITHER,
    "squared_hinge": NEITHER,
}
# Metrics of many thresholds.
THRESHOLDS = (
    keras.metrics.AUC,
    keras.metrics.PrecisionAtRecall,
    keras.metrics.RecallAtPrecision,
    keras.metrics.SensitivityAtSpecificity,
    keras.metrics.SpecificityAtSensitivity,
)
# Metrics that compare with one threshold, and so read zeros and ones as they are.
ZERO_OR_ONE = (
    keras.metrics.BinaryIoU,
    keras.metrics.FalseNegatives,
    keras.metrics.FalsePositives,
    keras.metrics.FBetaScore,
    keras.metrics.Precision,
    keras.metrics.Recall,
    keras.metrics.TrueNegatives,
    keras.metrics.TruePositives,
)
ZERO_OR_ONE_FUNCTIONS = ("binary_accuracy", "dice", "tversky")


class SameIds(keras.metrics.Accuracy):
    """What the names `"accuracy"` and `"acc"` mean: the share of equal ids."""


def named(identifier):
    """A metric given to `compile`; `"accuracy"` does not depend on shapes here."""
    if isinstance(identifier, str) and identifier.lower() in ("accuracy", "acc"):
        return SameIds(name=identifier)
    return identifier


def check_compiled_metrics(tuner, y, outputs):
    """Raises if a metric given to `compile` cannot compare targets with outputs.

    It is called when a step is traced, when the dtype of outputs is known.

    Args:
        tuner: a `RewardTuning`.
        y: targets.
        outputs: what the reward sees, a nest.
    """
    if not has_compiled_metrics(tuner):
        return
    check_structure(y, outputs)
    metrics = build_compiled_metrics(tuner, y, outputs, named)
    for metric, target, output in metrics:
        if is_float(output):
            refuse_accuracy_of_numbers(metric, output)
            continue
        refuse_scores(metric, output)
        if isinstance(metric, keras.metrics.Accuracy):
            check_ids(metric, target, output)
        policy = policy_of_output(tuner.policy, outputs, output)
        if needs_zero_or_one(metric) and may_exceed_one(policy, tuner.model):
            raise ValueError(
                f"Metric {metric.name!r} needs zeros and ones, which it compares with "
                f"a threshold, and `predict` returns one of several ids. {ACCURACY}, "
                "or `keras.metrics.MeanIoU(num_classes)`. "
                f"Received: {describe(metric, output)}"
            )


def check_structure(y, outputs):
    """Raises if targets do not stand beside outputs, which Keras pairs by place."""
    if isinstance(y, dict) and isinstance(outputs, dict):
        fits = set(outputs) <= set(y)
    else:
        sizes = [len(keras.tree.flatten(nest)) for nest in (y, outputs)]
        fits = y is not None and sizes[0] == sizes[1]
    if not fits:
        received = [
            sorted(nest) if isinstance(nest, dict) else type(nest).__name__
            for nest in (y, outputs)
        ]
        raise ValueError(
            "The metrics given to `compile` compare each output with its target, so "
            "`y` must have the structure of what `predict` returns. Leave the metrics "
            "out, or log such a number as a reward of weight 0. "
            f"Received: y of {received[0]}, outputs of {received[1]}"
        )


def refuse_accuracy_of_numbers(metric, output):
    """Raises for `"accuracy"` of outputs that are no ids."""
    if isinstance(metric, SameIds):
        raise ValueError(
            f"{metric.name!r} is the share of equal ids, and `predict` returns numbers "
            "that are hardly ever equal. Use a metric of numbers, such as "
            "`keras.metrics.MeanAbsoluteError()`; if they are scores of classes, name "
            "the metric, such as `keras.metrics.SparseCategoricalAccuracy()`. "
            f"Received: {describe(metric, output)}"
        )


def refuse_scores(metric, output):
    """Raises for a metric that reads scores of classes."""
    advice = SCORES.get(function_name(metric))
    if isinstance(metric, keras.metrics.IoU) and not metric.sparse_y_pred:
        advice = IOU
    if isinstance(metric, keras.metrics.FBetaScore) and metric.threshold is None:
        advice = ACCURACY
    if isinstance(metric, ZERO_OR_ONE) and getattr(metric, "top_k", None) is not None:
        advice = ACCURACY
    if isinstance(metric, THRESHOLDS) or hasattr(metric, "from_logits"):
        advice = advice or NEITHER
    if advice:
        raise ValueError(
            f"Metric {metric.name!r} reads scores of classes, as the model returns "
            "them, and `predict` returns the ids that were chosen by them. "
            f"{advice}; or measure the model itself: compile and evaluate "
            f"`tuned.model`. Received: {describe(metric, output)}"
        )


def check_ids(metric, target, output):
    """Raises if targets would be broadcast against ids."""
    shapes = [tuple(tensor.shape[1:]) for tensor in (target, output)]
    # Keras adds or removes a last axis of length 1.
    shapes = [shape[:-1] if shape[-1:] == (1,) else shape for shape in shapes]
    if not may_be_equal(*shapes):
        raise ValueError(
            f"Metric {metric.name!r} compares ids, so `y` must have the shape of what "
            "`predict` returns. Pass ids, for example `y.argmax(-1)` of one-hot "
            f"targets. Received: y of shape {tuple(target.shape)}, outputs of shape "
            f"{tuple(output.shape)}"
        )


def needs_zero_or_one(metric):
    """Whether a metric is right for zeros and ones alone."""
    by_function = function_name(metric) in ZERO_OR_ONE_FUNCTIONS
    return by_function or isinstance(metric, ZERO_OR_ONE)


def policy_of_output(policy, outputs, output):
    """The policy of one of a tuner's outputs; None for an output without one."""
    paths = keras.tree.flatten_with_path(outputs)
    path = next(path for path, leaf in paths if leaf is output)
    for key in path:
        if isinstance(policy, MultiOutputPolicy):
            policy = policy.by_key().get(key)
    return policy


def may_exceed_one(policy, model):
    """Whether outputs are one of more than two ids, as far as the policy says."""
    if policy is None or policy.codec is not None:
        return False
    if isinstance(policy, CategoricalPolicy):
        output = symbolic_output(model, policy.output_path)
        return output is None or output.shape[-1] != 2
    return isinstance(policy, TokenPolicy)


def function_name(metric):
    """The name of the function whose mean a metric is, or None."""
    function = wrapped_function(metric)
    function = getattr(function, "fn", function)  # of a loss
    if isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    known = {getattr(m, name, None) for m in (keras.metrics, keras.losses) if name}
    return name if function in known - {None} else None


def describe(metric, output):
    """A metric and an output, for an error message."""
    kind, shape = type(metric).__name__, tuple(output.shape)
    return f"{kind}, outputs of shape {shape}, dtype {dtype_of(output)}"
