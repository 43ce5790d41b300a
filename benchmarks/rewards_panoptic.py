"""Panoptic reward: time against the COCO evaluation's method in NumPy, and memory.

512 x 512 pixels, 64 segments, 8 images with 4 samples each. The NumPy method is that
of the COCO panoptic evaluation: one id a pixel, `np.unique` of the predicted ids and
of pairs of ids, then a loop over the pairs that occur. Both are given the maps in the
form that they expect, and are timed in turns; medians, per map.
"""

import jax
import numpy as np
from timing import in_turns

from keras_reward.nests import repeat_rows
from keras_reward.rewards.panoptic import PanopticQualityReward

BATCH, SAMPLES, SIZE, SEGMENTS, CLASSES = 8, 4, 512, 64, 20
ROUNDS = 5
GOAL = 0.5
OFFSET = 256**3  # ids are RGB colours


def voronoi_map(generator, seeds):
    """Cells around `seeds` (in cells of 8 x 8 pixels): the index of the nearest."""
    axis = np.arange(SIZE // 8)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)[:, :, None]
    noise = generator.normal(0.0, 2.0, (len(axis), len(axis), 1, 2))  # ragged edges
    nearest = np.linalg.norm(grid + noise - seeds, axis=-1).argmin(-1)
    return nearest.repeat(8, 0).repeat(8, 1)


def make_maps(seed=0):
    """Ground truth `(8, 512, 512, 2)` and predictions `(32, 512, 512, 2)`, int32.

    Each map has 64 segments and some void. Predictions move the cells a little, and
    give one segment in ten another class.
    """
    generator = np.random.default_rng(seed)
    y_true, y_pred = [], []
    for _ in range(BATCH):
        seeds = generator.uniform(0, SIZE // 8, (SEGMENTS + 4, 2))
        labels = generator.integers(1, CLASSES, SEGMENTS + 4)
        labels[SEGMENTS:] = 0  # the last four are void
        y_true.append(colour(generator, voronoi_map(generator, seeds), labels))
        for _ in range(SAMPLES):
            wrong = generator.random(SEGMENTS + 4) < 0.1
            other = generator.integers(1, CLASSES, SEGMENTS + 4)
            guess = np.where(wrong & (labels > 0), other, labels)
            moved = voronoi_map(generator, seeds + generator.normal(0, 1, seeds.shape))
            y_pred.append(colour(generator, moved, guess))
    return np.stack(y_true).astype("int32"), np.stack(y_pred).astype("int32")


def colour(generator, cells, labels):
    """A map of class and instance, with instances numbered as RGB colours are."""
    instances = generator.choice(OFFSET - 1, len(labels), replace=False) + 1
    instances[labels == 0] = 0
    return np.stack([labels[cells], instances[cells]], -1)


def numpy_reward(true_ids, true_classes, pred_ids, pred_classes, penalty=0.3):
    """The reward of one map by the COCO panoptic evaluation's method.

    Args:
        true_ids, pred_ids: `(512, 512)`, 0 for void.
        true_classes: dict, `{id: (class, area)}`.
        pred_classes: dict, `{id: class}`.
    """
    ids, counts = np.unique(pred_ids, return_counts=True)
    pred_areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    pairs = true_ids.astype(np.uint64) * OFFSET + pred_ids.astype(np.uint64)
    pairs, counts = np.unique(pairs, return_counts=True)
    overlaps = {
        (int(pair // OFFSET), int(pair % OFFSET)): int(count)
        for pair, count in zip(pairs, counts, strict=True)
    }
    total, matched = 0.0, set()
    for (true_id, pred_id), overlap in overlaps.items():
        if true_id == 0 or pred_id == 0:
            continue
        label, true_area = true_classes[true_id]
        if label != pred_classes[pred_id]:
            continue
        void = overlaps.get((0, pred_id), 0)
        iou = overlap / (pred_areas[pred_id] + true_area - overlap - void)
        if iou > 0.5:
            total += iou
            matched.add(pred_id)
    for pred_id, area in pred_areas.items():
        if pred_id == 0 or pred_id in matched:
            continue
        if overlaps.get((0, pred_id), 0) / area <= 0.5:
            total -= penalty
    return total


def for_numpy(panoptic_map, with_area):
    """Ids and the description of the segments, which COCO's files bring along."""
    ids = panoptic_map[..., 1]
    values, first, counts = np.unique(ids, return_index=True, return_counts=True)
    labels = panoptic_map[..., 0].reshape(-1)[first]
    described = {
        int(value): (int(label), int(count)) if with_area else int(label)
        for value, label, count in zip(values, labels, counts, strict=True)
        if value != 0
    }
    return ids, described


def jitted_reward():
    """The reward as a training step runs it: prepare, repeat to rows, evaluate."""
    reward = PanopticQualityReward(max_segments=SEGMENTS)

    def evaluate(y_true, y_pred):
        rows = repeat_rows(reward.prepare(y_true), SAMPLES)
        return reward.evaluate(rows, y_pred)[0]

    return jax.jit(evaluate)


def measure():
    """Rows of (name, reference's name, seconds an item, the reference's, goal)."""
    y_true, y_pred = make_maps()
    truths = [for_numpy(each, True) for each in y_true for _ in range(SAMPLES)]
    guesses = [for_numpy(each, False) for each in y_pred]
    on_device = jax.device_put((y_true, y_pred))
    evaluate = jitted_reward()

    def ours():
        return np.asarray(evaluate(*on_device))

    def theirs():
        pairs = zip(truths, guesses, strict=True)
        return [numpy_reward(*truth, *guess) for truth, guess in pairs]

    np.testing.assert_allclose(ours(), theirs(), atol=1e-3)
    times = [seconds / len(y_pred) for seconds in in_turns([ours, theirs], ROUNDS)]
    name = f"panoptic, {SIZE} x {SIZE}, {SEGMENTS} segments"
    return [(name, "COCO's method in NumPy", *times, GOAL)]


def memory():
    """`(temporaries, inputs)` of the compiled reward in bytes."""
    y_true, y_pred = make_maps()
    analysis = jitted_reward().lower(y_true, y_pred).compile().memory_analysis()
    return analysis.temp_size_in_bytes, y_true.nbytes + y_pred.nbytes
