"""Every reward, codec, policy and baseline, as a function of small arrays.

For properties that all of them have, such as that nothing depends on `floatx`.
"""

import keras
import numpy as np
from tiny import classifier, randomize

import keras_reward as kr
from keras_reward import advantages, baselines, codecs, objective
from keras_reward.models import VisionEncoderDecoder, VisionTransformer
from keras_reward.policies.choices import DecodedChoices
from keras_reward.terms import kl


def boxes(count, scale=8.0):
    """Boxes `(2, count, 4)`, with labels of which some are padding."""
    generator = np.random.default_rng(count)
    corners = generator.integers(0, 6, (2, count, 2)).astype("float32")
    sides = generator.integers(1, 4, (2, count, 2)).astype("float32")
    found = np.concatenate([corners, corners + sides], axis=-1) * scale / 8.0
    return {"boxes": found, "labels": generator.integers(-1, 2, (2, count))}


def panoptic_maps(seed):
    """Class and instance `(2, 6, 5, 2)` int32."""
    return np.random.default_rng(seed).integers(0, 3, (2, 6, 5, 2)).astype("int32")


def captions(rows, tokens, references=None, seed=0):
    """Ids `(rows, [references,] tokens)` from 0 (padding) to 5; 1 is the end."""
    shape = (rows, tokens) if references is None else (rows, references, tokens)
    return np.random.default_rng(seed).integers(0, 6, shape).astype("int32")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def photos(*shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype("float32")


def labels(*shape, classes=4, seed=0):
    return np.random.default_rng(seed).integers(0, classes, shape).astype("int32")


def cider():
    reward = kr.CIDErReward(end_id=1)
    reward.adapt(captions(20, 6, references=2, seed=5))
    return reward


def reward_model():
    """A model of images of any size."""
    layers = [keras.Input((None, None, 3), dtype="float32")]
    layers.append(keras.layers.GlobalAveragePooling2D(dtype="float32"))
    layers.append(keras.layers.Dense(1, kernel_initializer="ones", dtype="float32"))
    return kr.ModelReward(keras.Sequential(layers), with_inputs=False)


def on_host(y_true, y_pred):
    return y_pred.reshape(len(y_pred), -1).mean(axis=1)


BOXES, MORE_BOXES = boxes(3), boxes(5)
REWARDS = {
    "vividness": (kr.VividnessReward, None, photos(3, 5, 7, 3)),
    "hue_entropy": (kr.HueEntropyReward, None, photos(3, 5, 7, 3)),
    "colorfulness": (kr.ColorfulnessReward, None, photos(3, 5, 7, 3)),
    "psnr": (kr.PSNRReward, photos(2, 5, 7, 3), photos(2, 5, 7, 3, seed=1)),
    "mean_iou": (
        lambda: kr.MeanIoUReward(4, ignore_class=3),
        labels(2, 5, 7),
        labels(2, 5, 7, seed=1),
    ),
    "dice of one-hot": (
        lambda: kr.DiceReward(4),
        np.eye(4, dtype="float32")[labels(2, 5, 7)],
        labels(2, 5, 7, seed=1),
    ),
    "boundary": (
        lambda: kr.BoundaryReward(1.5),
        labels(2, 5, 7, classes=2),
        labels(2, 5, 7, classes=2, seed=1),
    ),
    "boundary of masks": (
        lambda: kr.BoundaryReward(1, masks=True),
        labels(2, 5, 7),
        labels(2, 5, 7, seed=1),
    ),
    "panoptic": (
        lambda: kr.PanopticQualityReward(max_segments=4),
        panoptic_maps(0),
        panoptic_maps(1),
    ),
    "stuff": (
        lambda: kr.PanopticQualityReward(stuff_classes=(2,)),
        panoptic_maps(0),
        panoptic_maps(1),
    ),
    "recall": (kr.RecallReward, BOXES, MORE_BOXES),
    "mean_average_precision": (
        lambda: kr.MeanAveragePrecisionReward(class_counts=[5, 2]),
        BOXES,
        MORE_BOXES,
    ),
    "cider": (cider, captions(3, 5, references=2), captions(3, 6, seed=1)),
    "long captions": (cider, captions(2, 40, references=2), captions(2, 35, seed=1)),
    "length": (lambda: kr.LengthReward(end_id=1), None, captions(3, 6)),
    "repetition": (lambda: kr.RepetitionReward(2), None, 1 + captions(3, 36)),
    "model": (reward_model, None, photos(2, 5, 7, 3)),
    "host": (lambda: kr.HostReward(on_host), None, photos(2, 5, 7, 3)),
    "sum": (
        lambda: 2.0 * kr.PSNRReward() + kr.VividnessReward() * 0.5 + 1.0,
        photos(2, 5, 7, 3),
        photos(2, 5, 7, 3, seed=1),
    ),
}


def of_reward(make):
    reward = make()

    def evaluate(y_true, y_pred):
        if y_true is not None:
            y_true = reward.prepare(y_true)
        value, components = reward.evaluate(y_true, y_pred)
        components.pop("reward_seconds", None)
        return {"reward": value, **components}

    return evaluate


def boundary_alternatives(y_true, y_pred):
    reward = kr.BoundaryReward(1, masks=True)
    choices = keras.ops.arange(4, dtype="int32")
    return reward.alternatives(reward.prepare(y_true), y_pred, choices)


PALETTE = codecs.ColorPalette(40.0)
BLOCKS = codecs.ColorPalette(40.0, interpolation="nearest")


def colors_by_parts(inputs, samples):
    policy = kr.CategoricalPolicy(codec=BLOCKS)
    context = keras.ops.zeros((1, 1, 1, BLOCKS.num_colors))
    # The number of samples is always known.
    samples = keras.ops.reshape(samples, (-1, 3, *keras.ops.shape(samples)[2:]))
    choices = DecodedChoices(policy, inputs, context, samples)
    images = policy.decode(inputs, samples)
    return kr.ColorfulnessReward().alternatives(None, images, choices)


BOX_CODEC = kr.BoxCodec(num_classes=2, image_size=8, max_boxes=2, num_buckets=9)
BOX_TOKENS = np.stack([BOX_CODEC.encode(BOXES, seed=seed)[0] for seed in range(2)], 1)
FUNCTIONS = {
    "boundary alternatives": (
        boundary_alternatives,
        labels(2, 5, 7),
        labels(2, 5, 7, seed=1),
    ),
    "matched_iou": (kr.matched_iou, BOXES, MORE_BOXES),
    "palette of pixels": (PALETTE.encode, photos(2, 5, 7, 3)),
    "painted": (PALETTE.decode, photos(2, 9, 7, 1), labels(2, 3, 4, 3, classes=8)),
    "painted in blocks": (
        BLOCKS.decode,
        photos(2, 9, 8, 1),
        labels(2, 3, 3, 4, classes=8),
    ),
    "colours by parts": (
        colors_by_parts,
        photos(2, 9, 8, 1),
        labels(2, 3, 3, 4, classes=8),
    ),
    "to_gray": (codecs.to_gray, photos(2, 5, 7, 3)),
    "rgb_to_lab": (codecs.rgb_to_lab, photos(2, 5, 7, 3)),
    "lab_to_rgb": (
        lambda lab: codecs.lab_to_rgb(
            100 * lab[..., 0], *(90 * lab[..., i] - 45 for i in (1, 2))
        ),
        photos(2, 5, 7, 3),
    ),
    "decoded boxes": (
        lambda tokens, probs: BOX_CODEC.decode(None, tokens, probs),
        BOX_TOKENS,
        photos(2, 2, 12),
    ),
    "canonical_segments": (
        lambda maps: codecs.canonical_segments(maps, 4),
        panoptic_maps(0),
    ),
    "panoptic_from_logits": (
        lambda a, b: codecs.panoptic_from_logits(a, b, 0.1, (1,)),
        normal(2, 6, 5, 3),
        normal(2, 6, 5, 4, seed=1),
    ),
    "categorical_likelihood": (
        objective.categorical_likelihood,
        normal(2, 3, 5),
        labels(2, 3, 2, classes=5),
    ),
    "weighted_likelihood_loss": (
        objective.weighted_likelihood_loss,
        normal(2, 3, 4),
        normal(2, 3, seed=1),
    ),
    "kl_weights": (lambda x: kl.kl_weights(x, ordered=True), normal(2, 3, 4)),
    "kl_weights of one": (kl.kl_weights, normal(2, 1, 4)),
    "kl_estimate": (kl.kl_estimate, normal(2, 3, 4)),
    "moving_average": (
        lambda r: (
            advantages.moving_average(r, 0.5),
            advantages.update_average(0.5, r),
        ),
        normal(2, 3),
    ),
    "reward_std": (advantages.reward_std, normal(2, 3)),
    "no_signal": (advantages.no_signal, normal(2, 3)),
}


def of_baseline(name):
    baseline = baselines.get(name)

    def evaluate(rewards, greedy_rewards):
        given = {"greedy_rewards": greedy_rewards} if baseline.uses_greedy else {}
        return baseline.advantages(rewards, **given)

    return evaluate


def of_policy(policy, temperature=0.7):
    """All that a policy does with a context and samples, but for the model."""
    model = classifier(dtype="float32")

    def evaluate(context, samples, targets):
        bound = policy().bind(model, temperature)
        context = bound.read_output(context)
        return {
            "likelihood": bound.likelihood(context, samples)._asdict(),
            "target": bound.target_log_prob(context, targets),
            "samples": bound.sample(context, 3, seed=1),
            "mode": bound.mode(context),
            "rows": bound.decode(None, bound.sample(context, 2, seed=2)),
        }

    return evaluate


def captioner():
    """A tiny model from 8x8 images to at most four of five tokens, in float32."""
    sizes = {"num_layers": 1, "num_heads": 2, "dtype": "float32"}
    encoder = VisionTransformer((8, 8, 3), 4, width=8, **sizes)
    return randomize(VisionEncoderDecoder(encoder, 5, 4, **sizes))


SLOTS = {
    "slot_mask": np.arange(20).reshape(4, 5) % 3 > 0,
    "position_mask": np.array([True, False, True, True]),
}
SEQUENCES = {"slots": SLOTS, "chunks": {"logits_chunk": 3}}
IMAGE = (2, 5, 7)
PARTS = {
    **{f"{n} reward": (of_reward(make), *a) for n, (make, *a) in REWARDS.items()},
    **FUNCTIONS,
    **{
        f"{name} baseline": (of_baseline(name), normal(4, 3), normal(4, seed=1))
        for name in (None, "leave_one_out", "greedy", "mean", "standardized")
    },
    "categorical policy": (
        of_policy(kr.CategoricalPolicy),
        normal(*IMAGE, 4),
        labels(2, 3, *IMAGE[1:]),
        labels(*IMAGE, classes=5),
    ),
    "bernoulli policy": (
        of_policy(kr.BernoulliPolicy),
        normal(*IMAGE),
        labels(2, 3, *IMAGE[1:], classes=2),
        labels(*IMAGE, classes=2),
    ),
    "gaussian policy": (
        of_policy(kr.GaussianPolicy),
        normal(*IMAGE),
        normal(2, 3, *IMAGE[1:], seed=1),
        normal(*IMAGE, seed=2),
    ),
}


def sequence_part(name):
    """The same as `of_policy` for sequences, whose context a model makes."""
    policy = kr.AutoregressivePolicy(**SEQUENCES[name]).bind(captioner())

    def evaluate(x, samples, targets):
        context = policy.encode(x)
        return {
            "likelihood": policy.likelihood(context, samples)._asdict(),
            "target": policy.target_log_prob(context, targets),
            "samples": policy.sample(context, 3, seed=1),
            "mode": policy.mode(context),
            "predicted": policy.greedy_outputs(x, context),
        }

    samples = captions(2, 4, references=3) % 5
    references = captions(2, 3, references=2, seed=1) % 5
    return evaluate, photos(2, 8, 8, 3), samples, references
