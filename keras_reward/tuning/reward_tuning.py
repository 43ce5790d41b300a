"""RewardTuning: a Keras model, its policy and a reward, trained by `fit`."""

import functools
import inspect

import keras
from keras import ops

from keras_reward import advantages, baselines, policies, rewards
from keras_reward.backend import RewardTrainer
from keras_reward.nests import are_arrays, check_floatx
from keras_reward.objective import input_weights
from keras_reward.policies.policy import refuse_truncation
from keras_reward.ragged import dense
from keras_reward.rewards.checks import check_shapes
from keras_reward.saved_objects import deserialized, entry, serialized
from keras_reward.terms import Term
from keras_reward.terms.lora_base import SavedAdapters
from keras_reward.tuning import metrics, model_state, own_variables
from keras_reward.tuning.checked_fitting import CheckedFitting
from keras_reward.tuning.compiled_metrics import check_compiled_metrics
from keras_reward.tuning.credit import (
    check_credit,
    check_samples,
    is_by_parts,
    needs_baseline,
)
from keras_reward.tuning.greedy_model import GreedyModel, input_signature, symbolic
from keras_reward.tuning.interruptible import Interruptible
from keras_reward.tuning.raw_inputs import RawInputs
from keras_reward.tuning.renamed import refuse_renamed
from keras_reward.tuning.training_step import TrainingStep
from keras_reward.tuning.whole_saves import WholeSaves
from keras_reward.tuning.without_model import TuningWithoutModel
from keras_reward.valid_inputs import as_weights, split_valid

UPDATES = ("all", "first")


@keras.saving.register_keras_serializable(package="keras_reward")
class RewardTuning(
    RewardTrainer,
    TrainingStep,
    WholeSaves,
    Interruptible,
    RawInputs,
    CheckedFitting,
    keras.Model,
):
    """Tunes a trained Keras model for a reward, by Reinforce.

    Reward tuning is maximum likelihood on the model's own samples, each weighted by
    how much better than its baseline it did (Pinto et al. 2023, "Tuning computer
    vision models with task rewards"). Each step of `fit` runs the model once, draws
    `num_samples` outputs for each input, computes their rewards, subtracts a baseline,
    and ascends the mean of `advantage * log_prob(sample)`.

    `RewardTuning(model, reward=...)` and `RewardTuning(reward=...)(model)` are
    equivalent. `tuned.model` is the model that was passed in, not a copy.

    `predict`, `evaluate` and validation use the greedy output, decoded to what the
    reward sees; `val_reward` is its mean reward. In `evaluate`, `loss` is minus the
    reward, so callbacks that monitor `val_loss` keep the best model too. Metrics given
    to `compile` compare targets with what `predict` returns: `"accuracy"` is the share
    of equal ids, and metrics that read the scores of classes are refused for ids.

    An input with a NaN or an infinity takes no part in a step: the model gets zeros in
    its place, and its weight is 0. `invalid_inputs` counts them. Only batch
    normalisation with `model_training=True` and activity regularizers see the zeros.

    Ctrl-C ends `fit` after the step, with all weights; a second one ends it at once.

    What is trainable is settled by the first step after `compile`: compile again after
    freezing layers or adding adapters.

    Of a KerasHub task with a preprocessor, data are raw, as in the task's own `fit` and
    `predict`: images with values from 0 to 255, or strings. The policy and the reward
    get them preprocessed. If images are preprocessed already, set
    `model.preprocessor = None`; token ids are not preprocessed again.

    Args:
        model: a built or unbuilt `keras.Model`, trained as usual, that returns a tensor
            of floats, several of them, or is a sequence model. If omitted, call the
            result with a model.
        reward: a `Reward`, a function `(y_true, y_pred) -> (rows,)`, or a name such as
            `"colorfulness"`.
        policy: how the model's output defines a distribution. `"auto"` (default): a
            model that has the methods of the policy protocol is its own policy, a
            sequence model such as `VisionEncoderDecoder` is sampled token by token, the
            boxes of an object detector are shown or hidden, see `DetectionPolicy`,
            and any other model's output is read as classes in its last axis: logits,
            or probabilities as after a softmax. Or `"categorical"`, `"bernoulli"`,
            `"gaussian"`, `"autoregressive"`, `"detection"`, or a `Policy`. For a model
            with several outputs, a dict or list with a policy for each that is tuned,
            see `MultiOutputPolicy`.
        num_samples: outputs drawn for each input in a training step. Default 2, as in
            the paper; more samples lower the variance of the gradient.
        baseline: what is subtracted from a reward. `"leave_one_out"` (default): the
            mean of the other samples. `"greedy"`: the reward of the greedy output.
            `"mean"`: the mean of all samples. `"moving_average"`: an average over
            earlier batches. `"standardized"`: leave-one-out, divided by the standard
            deviation of the input's rewards, which biases the gradient. `None`:
            nothing. Or a function from rewards `(batch, samples)` to advantages, or a
            `Baseline`.
        update: `"all"` (default) changes the likelihood of every sample. `"first"`
            changes that of the first one only, with the others as its baseline, as the
            paper does.
        temperature: divides the logits, for samples and their likelihood. Default 1.0.
        terms: list of further terms of the loss, each logged under its name:
            `Entropy`, `MaximumLikelihood`, `KL`, `ConfidenceLoss`, or your own `Term`.
            Default: none, as in the paper.
        model_training: the `training` flag of the model in a step. Default False, so
            that dropout is off and batch normalisation uses its moving averages.
        seed: int, seed of the samples' random numbers. Default: random.
        credit: `"parts"`: each part of an output, such as a pixel, is credited with
            what it was worth, where the policy draws parts independently and the reward
            says it, see `Reward.alternatives`. Then one sample is enough, and no
            baseline is used, except for a `MapReward`. Where parts are written one
            after the other, such as boxes by tokens, a token is credited with what its
            part and later ones add, see `Reward.gains`, compared with the other samples
            at the same part. `"output"`: all parts are credited with the reward of the
            whole. `"auto"` (default): by parts where that is possible, else by outputs;
            the log of `fit` says which.
        name: optional name.

    Raises:
        ValueError: for an unknown policy, baseline, update, reward or term, for numbers
            out of range, for terms that do not fit the policy, and for truncated
            sampling (`top_k`, `top_p`).

    Example:

    ```python
    import keras
    import numpy as np
    from keras import ops
    from keras_reward import RewardTuning

    def share_of_class_3(y_true, y_pred):
        return ops.cast(y_pred == 3, "float32")

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5)])
    tuned = RewardTuning(reward=share_of_class_3, num_samples=4, seed=0)(model)
    tuned.compile(optimizer=keras.optimizers.Adam(0.1))
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    tuned.fit(x, epochs=5, verbose=0)
    tuned.evaluate(x, verbose=0, return_dict=True)  # reward of the greedy output
    tuned.predict(x, verbose=0)                     # (64,) greedy classes
    tuned.model                                     # the tuned model
    ```
    """

    def __new__(cls, model=None, *args, **kwargs):
        refuse_truncation(cls.__name__, kwargs)
        refuse_renamed(kwargs, cls.__name__)
        if model is None:
            return TuningWithoutModel(cls, kwargs)
        return super().__new__(cls, model, *args, **kwargs)

    def __init__(
        self,
        model=None,
        reward=None,
        policy="auto",
        num_samples=2,
        baseline="leave_one_out",
        update="all",
        temperature=1.0,
        terms=(),
        model_training=False,
        seed=None,
        credit="auto",
        name=None,
    ):
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"RewardTuning tunes a keras.Model. Received: {model!r} "
                f"(of type {type(model).__name__})"
            )
        check_floatx()
        self.check_arguments(num_samples, baseline, update, temperature, terms, credit)
        # The model's dtype policy decides on loss scaling. The model casts its inputs.
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.reward = rewards.get(reward)
        self.supports_jit = self.reward.supports_jit
        self.policy = policies.get(policy, model, temperature)
        self.policy.check_reward(self.reward)
        self.credit = credit
        self.by_parts = is_by_parts(credit, self.reward, self.policy)
        self.uses_baseline = needs_baseline(self.by_parts, self.reward, self.policy)
        if self.uses_baseline:
            check_samples(num_samples, baseline)
        self.num_samples = num_samples
        self.baseline = baselines.get(baseline)
        self.update = update
        self.temperature = temperature
        self.model_training = model_training
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.terms = list(terms)
        for term in self.terms:
            term.bind(self)
        self.adapters = SavedAdapters(model)
        self.term_names = [name for term in self.terms for name in term.log_names]
        self.trackers = metrics.make_trackers(
            self.reward.component_names, num_samples, self.term_names
        )
        # Symbolic inputs like those of the first call. Keras must not track them.
        object.__setattr__(self, "seen_inputs", None)
        self.built = model.built

    @staticmethod
    def check_arguments(
        num_samples=2,
        baseline="leave_one_out",
        update="all",
        temperature=1.0,
        terms=(),
        credit="auto",
    ):
        """Raises a ValueError for arguments that `RewardTuning` cannot use."""
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(
                "`num_samples` must be a positive int. "
                f"Received: num_samples={num_samples!r}"
            )
        baselines.get(baseline)
        check_credit(credit)
        if credit == "output":
            check_samples(num_samples, baseline)
        if update not in UPDATES:
            raise ValueError(
                f"`update` must be one of {UPDATES}. Received: update={update!r}"
            )
        if not temperature > 0:
            raise ValueError(
                "`temperature` must be a positive number. "
                f"Received: temperature={temperature!r}"
            )
        if not isinstance(terms, (list, tuple)) or not all(
            isinstance(term, Term) for term in terms
        ):
            raise ValueError(
                "`terms` must be a list of terms, such as `[Entropy(0.01)]`. "
                f"Received: terms={terms!r}"
            )

    @property
    def non_trainable_variables(self):
        """Those of the model and the tuner, and what the reward and terms read."""
        own = {id(variable) for variable in self.variables}
        read = [*self.reward.variables]
        for term in self.terms:
            read += term.frozen_variables
        return super().non_trainable_variables + [v for v in read if id(v) not in own]

    def call(self, inputs, training=None):
        """The greedy output of each input, decoded to what the reward sees."""
        self.see_inputs(inputs)
        context = self.policy.encode(inputs, training=bool(training))
        return self.policy.greedy_outputs(inputs, context)

    def see_inputs(self, inputs):
        """Keeps the shapes of the first inputs, for `export` and for saving."""
        if self.seen_inputs is None and are_arrays(inputs):
            object.__setattr__(self, "seen_inputs", symbolic(inputs))

    @functools.wraps(keras.Model.export, assigned=("__name__", "__qualname__"))
    def export(self, filepath, *args, **kwargs):
        """Exports what `predict` computes: greedy outputs, decoded, without the reward.

        `tuned.model.export` exports the model itself. Of a KerasHub task with a
        preprocessor, the inputs are preprocessed ones.

        Args:
            filepath, format, verbose, **kwargs: as in `keras.Model.export`.
            input_signature: as there. By default, the inputs of a functional or
                Sequential model; for others, those of the first call.
        """
        bound = inspect.signature(keras.Model.export).bind(
            self, filepath, *args, **kwargs
        )
        if bound.arguments.get("input_signature") is None:
            bound.arguments["input_signature"] = input_signature(self)
        greedy = GreedyModel(self.model, self.policy)
        greedy.built = True
        greedy.export(*bound.args[1:], **bound.kwargs)

    def refuse_compiled_loss(self):
        if getattr(self, "loss", None) is not None:
            raise ValueError(
                "The objective is the reward: compile RewardTuning with an optimizer "
                f"and without a loss. Received: loss={self.loss!r}"
            )

    @property
    def loss_tracker(self):
        """The metric `loss`, which `compile` makes."""
        return next(metric for metric in self.metrics if metric.name == "loss")

    # Evaluation: Keras's own step, whose `y_pred` is what `call` returns.

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Minus the mean reward of the greedy outputs; updates the reward's metrics."""
        del training
        self.refuse_compiled_loss()
        y_pred = self.policy.rewarded(y_pred)
        targets = self.reward.prepare(dense(y))
        x, valid = split_valid(x)
        inputs = x if self.reward.uses_inputs else None
        check_shapes(self.reward, targets, y_pred, inputs)
        earned, components = self.reward.evaluate(targets, y_pred, inputs)
        earned, components = metrics.of_valid(valid, earned, components)
        metrics.record_rewards(self.trackers, earned, components)
        metrics.record_invalid(self.trackers, valid)
        earned, _ = advantages.split_finite(earned)
        weights = as_weights(valid, input_weights(sample_weight, earned))
        weighted = earned if weights is None else earned * weights
        if valid is None:
            return -ops.mean(weighted)
        number = ops.sum(ops.cast(valid, "float32"))
        return -ops.sum(weighted) / ops.maximum(number, 1.0)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics given to `compile`; omits those of training alone."""
        y = dense(y)
        check_compiled_metrics(self, y, y_pred)
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        hidden = (*metrics.TRAINING_ONLY, *self.term_names)
        return {k: v for k, v in results.items() if k not in hidden}

    def get_metrics_result(self):
        """Results of all metrics, except those that are not built yet."""
        results = {}
        for metric in self.metrics:
            if getattr(metric, "built", True):
                result = metric.result()
                results.update(
                    result if isinstance(result, dict) else {metric.name: result}
                )
        return results

    # Saving.

    def save_own_variables(self, store):
        own_variables.write(self, store)
        super().save_own_variables(store)

    def load_own_variables(self, store):
        super().load_own_variables(own_variables.read(self, store))

    @functools.wraps(keras.Model.load_weights)
    def load_weights(self, *args, **kwargs):
        super().load_weights(*args, **kwargs)
        own_variables.finish_reading(self)

    def get_config(self):
        model_state.warn_unregistered(self.model)
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "reward": serialized(self.reward),
            "policy": serialized(self.policy),
            "num_samples": self.num_samples,
            "baseline": serialized(self.baseline),
            "update": self.update,
            "temperature": self.temperature,
            "terms": [serialized(term) for term in self.terms],
            "model_training": self.model_training,
            "seed": self.seed,
            "credit": self.credit,
            "name": self.name,
            "model_state": model_state.state_of(self),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        refuse_renamed(config, "The file or config")
        # Earlier files, of whole outputs alone, go on as they began.
        config = {"credit": "output", **config}
        config["model"] = model_state.made_again(entry(config, "model"), custom_objects)
        for name in ("reward", "policy", "baseline"):
            config[name] = deserialized(entry(config, name), custom_objects)
        state = config.pop("model_state", None)  # which earlier files do not have
        if state is not None:
            given = [config[name] for name in ("model", "policy", "temperature")]
            model_state.restore(*given, state)
        terms = [deserialized(term, custom_objects) for term in entry(config, "terms")]
        tuner = cls(**{**config, "terms": terms})
        if state is not None:
            object.__setattr__(tuner, "seen_inputs", model_state.inputs_of(state))
        return tuner
