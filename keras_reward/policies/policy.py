"""The base class of policies, which read a model's output as a distribution."""

import functools
import inspect
import warnings

import keras

from keras_reward.forms.boxes import refuse_other_format
from keras_reward.nests import as_samples, goes_with, merge_rows
from keras_reward.saved_objects import NotRegisteredWarning, deserialized, serialized
from keras_reward.symbolic import refuse_values

TRUNCATIONS = ("top_k", "top_p", "sampler")
# A subclass that overwrites one of these may not have independent parts.
DRAWING = (
    *("sample", "noise", "transform", "likelihood", "position_log_probs"),
    *("decode", "rewarded"),
)


def refuse_truncation(name, kwargs):
    """Raises if `kwargs` ask for truncated sampling."""
    for key in TRUNCATIONS:
        if key in kwargs:
            raise ValueError(
                f"{name} draws its training samples from the whole distribution: "
                "with top-k, top-p or another truncated sampler, the samples and their "
                "log-probabilities would be of different distributions, and the "
                "gradient would be wrong. Remove the argument, or sharpen the "
                f"distribution with `temperature`. Received: {key}={kwargs[key]!r}"
            )


def takes_context(function):
    """Whether a function that decodes samples has an argument `context`."""
    try:
        return "context" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # of some built-in functions none is known
        return False


def decodes_parts(codec):
    """Whether a codec says of itself that it decodes each position alone."""
    if not getattr(codec, "independent_positions", False):
        return False
    return goes_with_decoding(codec, "independent_positions")


def goes_with_decoding(codec, name):
    """Whether a codec has an attribute that was written for the way it decodes."""
    said_by_itself = name in getattr(codec, "__dict__", {})
    return said_by_itself or goes_with(type(codec), name, ("decode", "__call__"))


class Policy(keras.layers.Layer):
    """Base class: how a model's output defines a distribution over outputs.

    A policy is bound to a model. The policy protocol is its five methods `encode`,
    `sample`, `likelihood`, `mode` and `decode`. A subclass implements all of them
    except `decode`. A `keras.Model` that has the five methods itself is wrapped in a
    `ModelPolicy`.

    Samples may be a nest, such as a dict of a box and its class: `(batch, n, ...)` in
    every method's documentation then stands for a nest of tensors of that shape.

    `sample` and `likelihood` must use exactly the same distribution, including the
    temperature. Otherwise the Reinforce gradient is wrong.

    Args:
        codec: how samples become what a reward sees. An object with a method
            `decode(inputs, samples)`, such as `ColorPalette`, or a function of that
            signature. `inputs` are the model's inputs, `(batch, ...)`; the samples and
            the result are `(batch, samples, ...)`. If it has a third argument
            `context`, it gets what `encode` returned. Default: the reward sees the
            samples.
        name: optional name.

    Attributes:
        ordered: whether the positions of a sample are drawn one after the other, each
            given the earlier ones. Default False: they are independent.
        takes_choices: whether `likelihood` takes `choices`. Default True.
        has_choices: whether a sample has one of finitely many choices at each position.
        independent_parts: whether it is known that positions are independent, so that
            they can get credit of their own, see `Reward.alternatives`. Default False.
        fixed_positions: whether a position of a sample is the same part of an output
            for every model. Default True. False where the model's own outputs say what
            the parts are, such as the candidates of a detector.
        output_path: tuple of the names and indices that lead to the output that the
            policy reads, if the model returns several. Default `()`.
    """

    ordered = False
    takes_choices = True
    has_choices = False
    independent_parts = False
    fixed_positions = True
    output_path = ()

    def __init__(self, codec=None, name=None, **kwargs):
        refuse_truncation(type(self).__name__, kwargs)
        super().__init__(name=name, dtype="float32", **kwargs)
        if codec is not None and not callable(getattr(codec, "decode", codec)):
            raise ValueError(
                "`codec` must have a method `decode(inputs, samples)` or be a function "
                f"of that signature. Received: codec={codec!r}"
            )
        self.codec = codec
        self._untracked(model=None)
        self.temperature = 1.0
        self.built = True

    def bind(self, model, temperature=1.0):
        """Makes this the policy of `model`.

        Args:
            model: a `keras.Model`.
            temperature: divides the logits. Below 1 the distribution is sharper.

        Returns:
            The policy itself.
        """
        if self.model is not None and self.model is not model:
            raise ValueError(
                f"This {type(self).__name__} belongs to another model already. Make a "
                "new one for each model. "
                f"Received: model={model.name!r}, bound to {self.model.name!r}"
            )
        self._untracked(model=model)
        self.temperature = temperature
        return self

    def bind_output(self, model, path, temperature=1.0):
        """As `bind`, for a policy that reads one of several outputs, that at `path`."""
        self._untracked(output_path=tuple(path))
        return self.bind(model, temperature)

    def _untracked(self, **attributes):
        # The model belongs to the tuner. If Keras also tracked it in the policy, its
        # metrics would be added, among them a second "loss".
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def encode(self, x, training=False):
        """Runs the model once, for all that the other methods need.

        Args:
            x: the model's inputs, `(batch, ...)`.
            training: the model's `training` flag.

        Returns:
            The context: a tensor or a nest of tensors.
        """
        raise NotImplementedError

    def sample(self, context, num_samples, seed=None, noise=None):
        """Draws samples for each input from the whole distribution.

        Args:
            context: what `encode` returned.
            num_samples: number of samples of each input.
            seed: a `keras.random.SeedGenerator` or an int.
            noise: the random numbers themselves, instead of `seed`. Given the same
                numbers, every backend draws the same samples.

        Returns:
            `(batch, num_samples, ...)`.
        """
        raise NotImplementedError

    def likelihood(self, context, samples, choices=(), entropy_gradient=False):
        """The likelihood of samples and the entropy: all that an update needs.

        Args:
            context: what `encode` returned.
            samples: `(batch, n, ...)`.
            choices: list of tensors of the shape of `samples`, or of nests like them:
                other choices. The log-probability of each is computed at its position,
                given the sample at all earlier ones.
            entropy_gradient: whether a gradient flows through the entropy. Default
                False: the entropy is only logged.

        Returns:
            A `Likelihood`.
        """
        raise NotImplementedError

    def log_prob(self, context, samples):
        """Log-probability of whole samples: `(batch, n)`, float32, in nats."""
        return self.likelihood(context, samples).log_prob

    def target_log_prob(self, context, targets):
        """Log-probability of the ground truth, for `MaximumLikelihood`.

        Args:
            context: what `encode` returned.
            targets: `y`, in the form of a sample.

        Returns:
            `(batch,)`, float32, in nats.
        """
        raise ValueError(
            f"{type(self).__name__} does not say how likely the ground truth is, which "
            "`MaximumLikelihood` needs. Give it a method `target_log_prob(context, "
            "targets)`, or leave out that term. "
            f"Received: model {self.model.name!r}"
        )

    def check_reward(self, reward):
        """Raises if a reward cannot read what samples decode to.

        Args:
            reward: the `Reward` of the `RewardTuning` that the policy belongs to.
        """
        written = self.bounding_box_format
        if written is not None:
            refuse_other_format(reward, written, f"of model {self.model.name!r}")

    @property
    def bounding_box_format(self):
        """Keras's name of the format of boxes that samples decode to, or None."""
        return getattr(self.codec, "bounding_box_format", None)

    def check_inputs(self, x):
        """Raises if the model cannot make outputs for `x`.

        `fit`, `train_on_batch`, `evaluate` and `predict` call it if they get arrays or
        tensors, since a compiled step cannot check values. Default: the method
        `check_inputs(x)` of the codec, if it has one.
        """
        check = getattr(self.codec, "check_inputs", None)
        if check is not None:
            check(x)

    @property
    def needs_first_batch(self):
        """Whether `check_first_batch` has something to find out. Default False."""
        return False

    def check_first_batch(self, x):
        """Finds out from real inputs what the model's layers do not tell, or raises.

        While `needs_first_batch`, it is called before a compiled function is run: by
        `fit`, `evaluate`, `predict`, the methods `*_on_batch` of `RewardTuning`, and
        the functions in `keras_reward.evaluation`. It is not compiled itself.

        Args:
            x: inputs of the model, in tensors of a few rows.
        """

    def check_targets(self, targets):
        """As `check_inputs`, for a `y` whose likelihood is needed in training."""

    def choice_probabilities(self, context):
        """The probability of each choice at each position, with gradient.

        Only if `has_choices`.

        Args:
            context: what `encode` returned.

        Returns:
            `(batch, *positions, choices)` float32.
        """
        raise NotImplementedError

    def choices_of(self, samples):
        """What `choice_probabilities` are of. Default: the whole of samples."""
        return samples

    def with_choices(self, samples, choices):
        """Samples with other `choices_of`. Default: the choices themselves."""
        return choices

    @property
    def has_part_rewards(self):
        """Whether `part_rewards` makes some of what `alternatives` say."""
        return False

    def part_rewards(self, credit):
        """What of the reward depends on each position, for a baseline, or None.

        Args:
            credit: a `Credit`, `(batch, n, ...)`.

        Returns:
            In the shape of the `position_log_probs` of samples. Default: what the
            reward says.
        """
        return credit.part_rewards

    def number_of_choices(self, context):
        """The number of choices at each position, if `has_choices`."""
        raise NotImplementedError

    def without_parts(self):
        """Why the parts of an output cannot be credited; None if they can.

        Their choices must be independent, and each must be decoded by itself: the codec
        has an attribute `independent_positions` that is true.
        """
        if not self.independent_parts:
            return f"{type(self).__name__} is not known to draw them independently"
        own = ["independent_parts", *["choice_probabilities"] * self.has_choices]
        if not all(goes_with(type(self), name, DRAWING) for name in own):
            return f"{type(self).__name__} draws or decodes in a way of its own"
        if self.decode_function is not None and not decodes_parts(self.codec):
            name = getattr(self.codec, "__name__", type(self.codec).__name__)
            return f"the codec {name} has no `independent_positions` that is true"
        return None

    def mode(self, context):
        """The greedy output `(batch, ...)`, shaped like one sample of each input."""
        raise NotImplementedError

    def greedy_outputs(self, x, context):
        """The greedy output of each input, decoded: what `predict` returns."""
        return self.sampled_outputs(x, context, as_samples(self.mode(context)))

    def rewarded(self, outputs):
        """What the reward sees of greedy outputs. Default: all of them."""
        return outputs

    def sampled_outputs(self, x, context, samples, **details):
        """What samples decode to: `decode`, given the context if it takes it."""
        if self._take_context[0]:
            details["context"] = context
        return self.decode(x, samples, **details)

    def decode(self, x, samples, context=None, **details):
        """Turns samples into what the reward sees.

        A subclass's own `decode` need not take the context.

        Args:
            x: the model's inputs, `(batch, ...)`.
            samples: `(batch, n, ...)`.
            context: what `encode` returned, for a codec that takes it. Default None.
            **details: further arguments for the codec.

        Returns:
            Outputs in rows, `(batch * n, ...)`: the samples of an input are adjacent.
        """
        if self.decode_function is not None:
            try:
                samples = self.call_decode_function(x, samples, context, details)
            except Exception as error:
                refuse_values("The policy's codec", error)
                raise
        return merge_rows(samples)

    @property
    def decode_function(self):
        """The function of `(x, samples)` that decodes samples; None without a codec."""
        return getattr(self.codec, "decode", self.codec)

    def call_decode_function(self, x, samples, context, details):
        """Calls `decode_function`, with the context if it takes it."""
        if self._take_context[1]:
            if context is None:
                raise ValueError(
                    f"What decodes the samples of this {type(self).__name__} takes the "
                    "context. Pass `decode(x, samples, context=policy.encode(x))`. "
                    "Received: context=None"
                )
            details = {**details, "context": context}
        return self.decode_function(x, samples, **details)

    @functools.cached_property
    def _take_context(self):
        # Known once: a step on PyTorch would look it up each time.
        return takes_context(self.decode), takes_context(self.decode_function)

    def twin(self, model):
        """A policy with the same settings and weights for another model."""
        with warnings.catch_warnings():  # the twin is not saved
            warnings.simplefilter("ignore", NotRegisteredWarning)
            config = self.get_config()
        twin = type(self).from_config({**config, **self.given()})
        twin.bind_output(model, self.output_path, self.temperature)
        twin.set_weights(self.get_weights())
        return twin

    def given(self):
        """Arguments that are objects and need not be serialisable."""
        return {"codec": self.codec}

    def get_config(self):
        return {
            "codec": serialized(self.codec),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["codec"] = deserialized(config["codec"])
        return cls(**config)
