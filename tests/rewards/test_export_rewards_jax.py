"""Every reward written in ops lowers for accelerators, without the host in it."""

import re

import jax
import keras
import numpy as np
import pytest
from keras import ops
from tiny import randomize

import keras_reward
from keras_reward import (
    BernoulliPolicy,
    BoundaryReward,
    CategoricalPolicy,
    CIDErReward,
    ColorfulnessReward,
    ColorPalette,
    DiceReward,
    FBetaReward,
    FunctionReward,
    HueEntropyReward,
    LengthReward,
    MapReward,
    MeanAveragePrecisionReward,
    MeanIoUReward,
    ModelReward,
    PanopticQualityReward,
    PSNRReward,
    RecallReward,
    RepetitionReward,
    VividnessReward,
)
from keras_reward.policies.choices import DecodedChoices

BOXES = {"boxes": np.ones((2, 3, 4), "float32"), "labels": np.ones((2, 3), "int32")}
MAPS = np.ones((2, 8, 8, 2), "int32")
IMAGES = np.ones((2, 8, 8, 3), "float32")
LABELS = np.ones((2, 8, 8), "int32")
CAPTIONS = np.full((2, 6), 5, "int32")
REFERENCES = np.full((2, 3, 6), 5, "int32")


def agreement(y_true, y_pred):
    return ops.cast(y_true == y_pred, "float32")


def adapted():
    reward = CIDErReward(end_id=1)
    reward.adapt(REFERENCES)
    return reward


def critic():
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1)]
    return ModelReward(randomize(keras.Sequential(layers)), with_inputs=False)


CASES = {
    BoundaryReward: (lambda: BoundaryReward(2, masks=True), LABELS, LABELS),
    CIDErReward: (adapted, REFERENCES, CAPTIONS),
    ColorfulnessReward: (ColorfulnessReward, None, IMAGES),
    DiceReward: (lambda: DiceReward(3), LABELS, LABELS),
    FBetaReward: (FBetaReward, LABELS, LABELS),
    HueEntropyReward: (HueEntropyReward, None, IMAGES),
    LengthReward: (LengthReward, None, CAPTIONS),
    MapReward: (lambda: MapReward(agreement, reach=1), LABELS, LABELS),
    MeanAveragePrecisionReward: (
        lambda: MeanAveragePrecisionReward(class_counts="coco"),
        BOXES,
        BOXES,
    ),
    MeanIoUReward: (lambda: MeanIoUReward(3), LABELS, LABELS),
    ModelReward: (critic, None, IMAGES),
    PSNRReward: (PSNRReward, IMAGES, IMAGES),
    PanopticQualityReward: (
        lambda: PanopticQualityReward(max_segments=4, stuff_classes=(2,)),
        MAPS,
        MAPS,
    ),
    RecallReward: (RecallReward, BOXES, BOXES),
    RepetitionReward: (RepetitionReward, None, CAPTIONS),
    VividnessReward: (VividnessReward, None, IMAGES),
}


def evaluated(reward, y_true, y_pred):
    return reward.evaluate(y_true, y_pred)[0]


def lowered(reward, y_true, y_pred, compute=evaluated):
    """The text of a reward that is lowered for three platforms, and its variables."""

    def score(variables, y_true, y_pred):
        mapping = list(zip(reward.variables, variables, strict=True))
        with keras.StatelessScope(mapping):
            return compute(reward, reward.prepare(y_true), y_pred)

    arguments = ([v.value for v in reward.variables], y_true, y_pred)
    exported = jax.export.export(jax.jit(score), platforms=["cpu", "cuda", "tpu"])(
        *arguments
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    return exported.mlir_module()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_lowers_for_every_platform_without_host_callback(case):
    make, y_true, y_pred = CASES[case]
    text = lowered(make(), y_true, y_pred)
    calls = set(re.findall(r"custom_call @(\w+)", text))
    assert not [name for name in calls if "callback" in name]
    # 64-bit integers and floats are slow or missing on accelerators.
    assert not re.findall(r"tensor<[\dx]*(?:i64|f64|ui64)>", text)


class ShownBoxes:
    """Hides or shows the boxes that are the inputs."""

    def decode(self, inputs, samples):
        labels = ops.where(samples == 1, inputs["labels"][:, None], -1)
        return {"boxes": inputs["boxes"][:, None], "labels": labels}


def evaluate_choices(reward, y_true, y_pred):
    """What each choice at each position would have earned."""
    choices = ops.arange(3, dtype="int32")
    if y_true is None:
        codec = ColorPalette(60.0, interpolation="nearest")
        samples = ops.zeros((2, 1, 4, 4), "int32")
        context = ops.zeros((2, 4, 4, codec.num_colors))
        policy = CategoricalPolicy(codec=codec)
        choices = DecodedChoices(policy, y_pred[..., :1], context, samples)
    if isinstance(y_pred, dict):
        rows, boxes = y_pred["labels"].shape
        policy = BernoulliPolicy(codec=ShownBoxes())
        samples = ops.zeros((rows, 1, boxes), "int32")
        choices = DecodedChoices(policy, y_pred, ops.zeros((rows, boxes)), samples)
    return reward.alternatives(y_true, y_pred, choices)


def evaluate_gains(reward, y_true, y_pred):
    return reward.gains(y_true, y_pred)


CREDITING = [case for case in CASES if not CASES[case][0]().without_alternatives()]


@pytest.mark.parametrize("case", CREDITING, ids=lambda case: case.__name__)
def test_what_parts_were_worth_lowers_for_every_platform(case):
    make, y_true, y_pred = CASES[case]
    text = lowered(make(), y_true, y_pred, evaluate_choices)
    assert not re.findall(r"tensor<[\dx]*(?:i64|f64|ui64)>", text)
    assert len(CREDITING) == 9


@pytest.mark.parametrize("case", [RecallReward, MeanAveragePrecisionReward])
def test_what_parts_add_lowers_for_every_platform(case):
    make, y_true, y_pred = CASES[case]
    text = lowered(make(), y_true, y_pred, evaluate_gains)
    assert not re.findall(r"tensor<[\dx]*(?:i64|f64|ui64)>", text)


def test_no_reward_is_left_out():
    every = {
        value
        for value in vars(keras_reward).values()
        if isinstance(value, type) and issubclass(value, keras_reward.Reward)
    }
    made_of_others = {
        keras_reward.Reward,
        keras_reward.ProductReward,
        keras_reward.SumReward,
        FunctionReward,
        keras_reward.HostReward,  # on the host by its nature
    }
    assert every - made_of_others == set(CASES)


def test_tables_are_arguments_not_constants():
    """A corpus of many n-grams does not make the compiled step larger."""
    sizes = []
    for words in (5, 5000):
        reward = CIDErReward()
        ids = np.arange(1, words + 1, dtype="int32")
        reward.adapt(np.repeat(ids[None, None], 2, axis=0))
        sizes.append(len(lowered(reward, REFERENCES, CAPTIONS)))
    assert sizes[1] < 1.2 * sizes[0]
