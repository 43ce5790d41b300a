"""The policy of models with several outputs: a policy for each of them."""

import contextlib

import keras
import numpy as np

from keras_reward.nests import repeat_rows, samples_per_input
from keras_reward.policies.factorized import BernoulliPolicy, CategoricalPolicy
from keras_reward.policies.gaussian import GaussianPolicy
from keras_reward.policies.likelihood import of_parts
from keras_reward.policies.policy import Policy

# Policies that read one output, by name.
OUTPUT_POLICIES = {
    "categorical": CategoricalPolicy,
    "bernoulli": BernoulliPolicy,
    "gaussian": GaussianPolicy,
}


@keras.saving.register_keras_serializable(package="keras_reward")
class MultiOutputPolicy(Policy):
    """A policy for each output of a model that returns several.

    `RewardTuning(policy={"depth": "gaussian", "classes": "categorical"})` makes this
    policy; so do a list, a tuple, and nests of them. The outputs are independent given
    the input: each has random numbers of its own, log-probabilities are added, and the
    entropy is the mean over the positions of all outputs. The temperature applies to
    every output.

    An output without a policy is passed on to the reward as it is, the same for every
    sample of an input. Nothing of the reward's gradient flows into it.

    Samples have the structure of `policies`, without the outputs that have no policy
    (in a list they are None). What the reward sees, and `predict` returns, has the
    structure of the model's outputs. For `MaximumLikelihood`, `y` has a target for each
    output with a policy, under the same name or index; others are ignored.

    Args:
        policies: dict with the names of outputs, or list or tuple with an entry for
            each output. An entry is `"categorical"`, `"bernoulli"`, `"gaussian"`, such
            a policy, a nest for an output that is one itself, or None: no policy. In a
            dict, outputs without a policy can be left out.
        name: optional name.

    Raises:
        ValueError: if there is no policy, or one for two outputs; for policies that do
            not read one output, such as those of sequences; when the model runs, if its
            outputs do not fit.

    Example:

    ```python
    import keras
    from keras import ops
    from keras_reward import GaussianPolicy, MultiOutputPolicy, RewardTuning

    def near_where_found(y_true, y_pred):
        near = -ops.abs(y_pred["distance"][:, 0] - 2.0)
        return ops.where(y_pred["found"][:, 0] == 1, near, -3.0)

    x = keras.Input((8,))
    outputs = {
        "distance": keras.layers.Dense(1)(x),
        "found": keras.layers.Dense(1)(x),
        "features": x,  # without a policy
    }
    model = keras.Model(x, outputs)
    policy = MultiOutputPolicy({"distance": GaussianPolicy(0.3), "found": "bernoulli"})
    tuned = RewardTuning(model, reward=near_where_found, policy=policy)
    ```
    """

    def __init__(self, policies, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        if is_config(policies):  # of a tuple, from a file
            policies = keras.saving.deserialize_keras_object(policies)
        if not isinstance(policies, (dict, list, tuple)):
            raise ValueError(
                "`policies` must be a dict, list or tuple with a policy for each "
                f"output. Received: policies={policies!r}"
            )
        read = {key: policy_of_output(key, p) for key, p in entries(policies)}
        if isinstance(policies, dict):
            # Keras numbers what it saves: the order must not depend on the user's.
            self.policies = {key: read[key] for key in sorted(read)}
        else:
            self.policies = filled(policies, read)
        self.check_policies()

    def check_policies(self):
        """Raises if there is no policy, or one for two outputs."""
        single = self.single_policies()
        if not single:
            raise ValueError(
                "At least one output must have a policy. Name it, such as "
                '`policy={"classes": "categorical"}`. Received: no policy'
            )
        if len({id(policy) for policy in single}) < len(single):
            raise ValueError(
                "Each output must have a policy of its own. Make a new one for each. "
                "Received: the same policy for two outputs"
            )

    def by_key(self):
        """Those outputs that have a policy: a dict of policies by name or index."""
        return {k: p for k, p in entries(self.policies) if p is not None}

    def single_policies(self):
        """The policies of single outputs, at any depth."""
        found = []
        for policy in self.by_key().values():
            nested = isinstance(policy, MultiOutputPolicy)
            found += policy.single_policies() if nested else [policy]
        return found

    @property
    def takes_choices(self):
        return all(policy.takes_choices for policy in self.by_key().values())

    def bind(self, model, temperature=1.0):
        for key, policy in self.by_key().items():
            with of_output(key):
                policy.bind_output(model, (*self.output_path, key), temperature)
        return super().bind(model, temperature)

    def check_inputs(self, x):
        for key, policy in self.by_key().items():
            with of_output(key):
                policy.check_inputs(x)

    @property
    def needs_first_batch(self):
        return any(policy.needs_first_batch for policy in self.by_key().values())

    def check_first_batch(self, x):
        if self.needs_first_batch:
            self.encode(x)

    def encode(self, x, training=False):
        """Runs the model once.

        Returns:
            The structure of the model's outputs: of each output, the context of its
            policy, or the output itself if it has none.
        """
        return self.read_output(self.model(x, training=training))

    def read_output(self, output):
        """The context, from what the model returned."""
        self.check_outputs(output)
        policies, context = self.by_key(), {}
        for key, value in entries(output):
            with of_output(key):
                read = policies[key].read_output if key in policies else unchanged
                context[key] = read(value)
        return filled(output, context)

    def check_outputs(self, outputs):
        """Raises if the model's outputs do not have the structure of the policies."""
        kinds = dict if isinstance(self.policies, dict) else (list, tuple)
        received = f"from model {self.model.name!r}"
        if not isinstance(outputs, kinds):
            given = "dict" if kinds is dict else "list"
            raise ValueError(
                f"A {given} of policies reads a {given} of outputs. For a dict of "
                "outputs pass a dict of policies, for a list of outputs a list, for "
                f"one tensor one policy. Received: {described(outputs)} {received}"
            )
        if kinds is dict:
            unknown = [key for key in self.policies if key not in outputs]
            if unknown:
                raise ValueError(
                    "Every policy must be of an output that the model has. Use the "
                    "names of its outputs; those without a policy are passed on to the "
                    f"reward. Received: policies for {unknown}, and outputs "
                    f"{sorted(outputs)} {received}"
                )
        elif len(outputs) != len(self.policies):
            raise ValueError(
                "A list of policies must have an entry for each output. Write None for "
                "an output without a policy; it is passed on to the reward. "
                f"Received: {len(self.policies)} policies, and {len(outputs)} outputs "
                f"{received}"
            )

    def sample(self, context, num_samples, seed=None, noise=None):
        samples = {}
        for index, (key, policy) in enumerate(self.by_key().items()):
            own = None if noise is None else noise[key]
            samples[key] = policy.sample(
                context[key], num_samples, seed=seed_of_part(seed, index), noise=own
            )
        return filled(self.policies, samples)

    def likelihood(self, context, samples, choices=(), entropy_gradient=False):
        parts = [
            policy.likelihood(
                context[key],
                samples[key],
                choices=[choice[key] for choice in choices],
                entropy_gradient=entropy_gradient,
            )
            for key, policy in self.by_key().items()
        ]
        return of_parts(parts)

    def mode(self, context):
        policies = self.by_key()
        return filled(
            self.policies, {k: p.mode(context[k]) for k, p in policies.items()}
        )

    def decode(self, x, samples, context):
        """Decodes each output by its policy, and repeats those without one.

        Args:
            x: the model's inputs, `(batch, ...)`.
            samples: nest of `(batch, n, ...)`.
            context: what `encode` returned.

        Returns:
            Outputs in rows, `(batch * n, ...)`, in the structure of the model's.
        """
        policies, outputs = self.by_key(), {}
        for key, value in entries(context):
            if key in policies:
                policy = policies[key]
                outputs[key] = policy.sampled_outputs(x, value, samples[key])
            else:
                outputs[key] = repeat_rows(value, samples_per_input(samples))
        return filled(context, outputs)

    def target_log_prob(self, context, targets):
        """Log-probability `(batch,)` of the ground truth, over all outputs.

        Args:
            context: what `encode` returned.
            targets: dict or list with a target for each output that has a policy.
        """
        self.check_structure(targets)
        total = 0.0
        for key, policy in self.by_key().items():
            with of_output(key):
                total += policy.target_log_prob(context[key], targets[key])
        return total

    def check_targets(self, targets):
        self.check_structure(targets)
        for key, policy in self.by_key().items():
            with of_output(key):
                policy.check_targets(targets[key])

    def check_structure(self, targets):
        """Raises if targets lack one of an output that has a policy."""
        if isinstance(self.policies, dict):
            fits = isinstance(targets, dict)
        else:
            fits = isinstance(targets, (list, tuple))
            fits = fits and len(targets) == len(self.policies)
        missing = list(self.by_key())
        if fits:
            given = dict(entries(targets))
            missing = [key for key in missing if given.get(key) is None]
        if missing:
            raise ValueError(
                "The likelihood of the ground truth needs a `y` like the outputs, with "
                "a target for each that has a policy. Add what is missing. "
                f"Missing: {missing}. Received: y is {described(targets)}"
            )

    def twin(self, model):
        twins = {key: policy.twin(model) for key, policy in self.by_key().items()}
        twins = filled(self.policies, twins)
        twin = type(self).from_config({"policies": twins, "name": self.name})
        return twin.bind_output(model, self.output_path, self.temperature)

    def get_config(self):
        policies = filled(self.policies, self.by_key())
        return {
            "policies": keras.saving.serialize_keras_object(policies),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def policy_of_output(key, identifier):
    """The policy of an output, from an entry of `MultiOutputPolicy`; None for None."""
    if is_config(identifier):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if identifier is None:
        return None
    if isinstance(identifier, str) and identifier in OUTPUT_POLICIES:
        return OUTPUT_POLICIES[identifier]()
    if isinstance(identifier, (dict, list, tuple)):
        return MultiOutputPolicy(identifier)
    reads = callable(getattr(identifier, "read_output", None))
    if not isinstance(identifier, Policy) or not reads:
        names = ", ".join(map(repr, OUTPUT_POLICIES))
        raise ValueError(
            "The policy of one of several outputs must read that output alone, which "
            f"policies of sequences do not. Pass one of {names}, an instance of such a "
            f"policy, or None. Received: {identifier!r} for output {key!r}"
        )
    return identifier


def is_config(value):
    """Whether a value is a serialised object."""
    return isinstance(value, dict) and {"class_name", "config"} <= set(value)


def entries(container):
    """Pairs of a dict's keys and values, or of a list's indices and entries."""
    return container.items() if isinstance(container, dict) else enumerate(container)


def filled(container, values):
    """A container of the same structure.

    Args:
        container: dict, list or tuple.
        values: dict of values by key or index. Others are left out of a dict, and None
            in a list or tuple.
    """
    if isinstance(container, dict):
        return {key: values[key] for key in container if key in values}
    items = [values.get(index) for index in range(len(container))]
    if hasattr(container, "_fields"):  # a named tuple
        return type(container)(*items)
    return tuple(items) if isinstance(container, tuple) else items


def unchanged(output):
    return output


def described(nest):
    """A nest in words, for messages."""
    if isinstance(nest, dict):
        return f"a dict of {sorted(nest)}"
    if isinstance(nest, (list, tuple)):
        return f"a {type(nest).__name__} of {len(nest)}"
    shape = getattr(nest, "shape", None)
    return "None" if nest is None else f"one {type(nest).__name__} of shape {shape}"


@contextlib.contextmanager
def of_output(key):
    """Names the output in errors that are raised within this context."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Output {key!r}: {error}") from error


def seed_of_part(seed, index):
    """A seed for one of several draws; a `SeedGenerator` gives new numbers itself."""
    if not isinstance(seed, int):
        return seed
    state = np.random.SeedSequence([seed % 2**32, index]).generate_state(1)
    return int(state[0] >> 1)
