"""Whether rewards and metrics equal the field's references on real annotations.

`--data` is a folder of COCO's annotations and captions: `coco/boxes_eval.json`,
`coco/panoptic_{train,eval}.{json,tar}`, `captions/*.json.gz`, and
`parity/` with the COCO API's published example. Any Keras backend:

    KERAS_BACKEND=jax python benchmarks/parity.py --data FOLDER

- CIDEr-D of 2,000 candidates against pycocoevalcap;
- recall and mAP rewards against the rules in plain Python (`tests/`);
- the panoptic reward and panoptic quality against the rules in plain Python;
- `coco_detection` against the 24 numbers of the COCO API's example.
"""

import argparse
import contextlib
import gzip
import io
import json
import pathlib
import sys
import tarfile

import keras
import numpy as np
import rewards_captioning as captions
from PIL import Image

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests" / "helpers"))
import detection_in_numpy
import panoptic_in_numpy
from tiny import compiled, to_numpy

from keras_reward import (
    CIDErReward,
    MeanAveragePrecisionReward,
    PanopticQualityReward,
    RecallReward,
    matched_iou,
)
from keras_reward.evaluation import coco_detection, panoptic_quality
from keras_reward.evaluation.coco_detection import METRICS
from keras_reward.rewards.coco_classes import COCO_CLASS_COUNTS
from keras_reward.rewards.detection import COCO_THRESHOLDS


def evaluate(reward, y_true, y_pred):
    """Rewards in NumPy, by the compiled reward."""
    arguments = keras.tree.map_structure(keras.ops.convert_to_tensor, (y_true, y_pred))
    return to_numpy(compiled(lambda truth, output: reward(truth, output))(*arguments))


def check_captions(folder, count=2000):
    """Captions of the image, of others, shuffled, cut and corrupted."""
    ids = captions.to_ids(captions.read_captions(folder / "captions"))
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(ids), count, replace=False)
    references = ids[chosen, :, :40]
    candidates = np.full((count, 40), captions.PAD, "int32")
    for row, image in enumerate(chosen):
        kind = row % 5
        source = image if kind < 4 else generator.integers(len(ids))
        words = [int(token) for token in ids[source, row % 5] if token > captions.END]
        if kind == 1:
            generator.shuffle(words)
        if kind == 2:
            words = words[: len(words) // 2]
        if kind == 3:
            words[::3] = generator.integers(2, ids.max(), len(words[::3])).tolist()
        words = words[:39]
        candidates[row, : len(words) + 1] = [*words, captions.END]
    reward = CIDErReward(end_id=captions.END, count_end_token=False)
    reward.adapt(ids)
    ours = evaluate(reward, references, candidates)
    theirs = captions.reference(ids, references, candidates, samples=1)()
    relative = np.abs(ours - theirs) / np.maximum(theirs, 0.01)
    return [("CIDEr-D against pycocoevalcap", count, relative.max(), 1e-4)]


def read_boxes(folder):
    """Boxes of all images as a padded array of (x, y, w, h, label)."""
    dataset = json.loads((folder / "coco" / "boxes_eval.json").read_text())
    categories = sorted(category["id"] for category in dataset["categories"])
    images = {image["id"]: [] for image in dataset["images"]}
    for box in dataset["annotations"]:
        label = categories.index(box["category_id"])
        images[box["image_id"]].append([*box["bbox"], label])
    boxes = np.full((len(images), max(map(len, images.values())), 5), -1, "float32")
    for row, found in zip(boxes, images.values(), strict=True):
        row[: len(found)] = np.reshape(found, (-1, 5))
    return boxes


def check_detection(folder):
    """Predictions: the boxes moved and scaled, some twice, missing or mislabelled."""
    boxes = read_boxes(folder)
    generator = np.random.default_rng(0)
    found = np.concatenate([boxes, boxes[:, ::2]], axis=1)
    sizes = found[..., 2:4].copy()
    found[..., :2] += generator.normal(0, 0.08, sizes.shape) * sizes
    found[..., 2:4] *= np.exp(generator.normal(0, 0.08, sizes.shape))
    found[generator.random(found.shape[:2]) < 0.15, 4] = -1
    wrong = (generator.random(found.shape[:2]) < 0.1) & (found[..., 4] >= 0)
    found[wrong, 4] = generator.integers(0, 80, wrong.sum())
    y_true, y_pred = (
        {"boxes": each[..., :4], "labels": each[..., 4].astype("int32")}
        for each in (boxes, found)
    )
    counts = list(COCO_CLASS_COUNTS.values())
    rules = {"layout": "xywh"}
    settings = {"bounding_box_format": "xywh"}
    weighted = {**settings, "class_counts": "coco"}
    pairs = {
        "recall reward": (
            evaluate(RecallReward(**settings), y_true, y_pred),
            detection_in_numpy.reward(y_true, y_pred, [0.5], **rules),
        ),
        "mAP reward": (
            evaluate(MeanAveragePrecisionReward(**weighted), y_true, y_pred),
            detection_in_numpy.reward(
                y_true, y_pred, COCO_THRESHOLDS, counts=counts, **rules
            ),
        ),
        "mAP reward as published": (
            evaluate(
                MeanAveragePrecisionReward(
                    as_published=True, image_size=640, **weighted
                ),
                y_true,
                y_pred,
            ),
            detection_in_numpy.published_reward(
                y_true, y_pred, COCO_THRESHOLDS, size=640, counts=counts, **rules
            ),
        ),
        "matched IoU": (
            to_numpy(matched_iou(y_true, y_pred, **settings)),
            detection_in_numpy.matched_iou(y_true, y_pred, **rules),
        ),
    }
    return [
        (name, len(boxes), np.abs(ours - np.array(theirs)).max(), 2e-5)
        for name, (ours, theirs) in pairs.items()
    ]


def read_panoptic(folder, size=256):
    """`(maps, stuff classes)`; crowds have a negative instance, borders are void."""
    maps, stuff = [], ()
    for split in ("train", "eval"):
        stem = folder / "coco" / f"panoptic_{split}"
        dataset = json.loads(stem.with_suffix(".json").read_text())
        stuff = tuple(c["id"] for c in dataset["categories"] if not c["isthing"])
        with tarfile.open(stem.with_suffix(".tar")) as tar:
            for image in dataset["annotations"]:
                file = tar.extractfile(image["file_name"])
                channels = np.array(Image.open(file).convert("RGB")).astype("int64")
                ids = channels @ [1, 256, 65536]
                labelled = np.zeros((size, size, 2), "int32")
                height, width = ids.shape
                for segment in image["segments_info"]:
                    instance = -1 if segment["iscrowd"] else segment["id"]
                    here = labelled[:height, :width]
                    here[ids == segment["id"]] = segment["category_id"], instance
                maps.append(labelled)
    return np.stack(maps), stuff


def perturbed(panoptic_map, generator):
    """The map moved, with two segments merged, one relabelled and one split."""
    panoptic_map = np.abs(panoptic_map)
    moved = np.roll(panoptic_map, generator.integers(-9, 10, 2), (0, 1))
    keys = np.unique(panoptic_map.reshape(-1, 2), axis=0)
    keys = keys[keys[:, 0] != 0]
    if len(keys) > 1:
        one, other, third = keys[generator.integers(0, len(keys), 3)]
        moved[(moved == one).all(-1)] = other
        moved[(moved == third).all(-1)] = third[0], third[1] + 1
        half = (moved == other).all(-1)
        half[:, : half.shape[1] // 2] = False
        moved[half] = other[0], other[1] + 77
    return moved


def check_panoptic(folder, chunk=20):
    y_true, stuff = read_panoptic(folder)
    generator = np.random.default_rng(0)
    y_pred = np.stack([perturbed(each, generator) for each in y_true])
    reward = PanopticQualityReward(stuff_classes=stuff)
    ours = np.concatenate(
        [
            evaluate(reward, y_true[i : i + chunk], y_pred[i : i + chunk])
            for i in range(0, len(y_true), chunk)
        ]
    )
    theirs = [
        panoptic_in_numpy.reward(*pair, stuff, reward.max_segments)[0]
        for pair in zip(y_true, y_pred, strict=True)
    ]
    quality = panoptic_quality(y_true, y_pred, stuff_classes=stuff)["per_class"]
    expected = panoptic_in_numpy.panoptic_quality(y_true, y_pred, stuff)
    assert set(quality) == set(expected)
    difference = max(
        abs(quality[label][name] - value)
        for label, values in expected.items()
        for name, value in zip(("pq", "sq", "rq"), values, strict=True)
    )
    return [
        ("panoptic reward", len(ours), np.abs(ours - theirs).max(), 1e-5),
        ("PQ, SQ, RQ of each class", len(ours), difference, 1e-9),
    ]


def check_coco_api(folder):
    """The example that comes with the COCO API: 12 numbers of boxes, 12 of masks."""
    from pycocotools.coco import COCO

    folder = folder / "parity"

    def read(name):
        with gzip.open(folder / name) as file:
            return json.load(file)

    truth = COCO()
    truth.dataset = read("instances_val2014_100.json.gz")
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    expected = json.loads((folder / "expected_coco_eval.json").read_text())
    results = []
    for kind in ("bbox", "segm"):
        found = read(f"fake{kind}100_results.json.gz")
        y_true = as_dictionary(truth, truth.dataset["annotations"], kind)
        metrics = coco_detection(
            y_true, as_dictionary(truth, found, kind), "xywh", iou_type=kind
        )
        ours = np.array([metrics[name] for name in METRICS])
        difference = np.abs(ours - expected[kind]["recomputed"]).max()
        results.append((f"COCO API's example, {kind}", len(METRICS), difference, 1e-9))
    return results


def as_dictionary(coco, annotations, kind):
    """COCO's annotations in the dictionary that rewards see."""
    images = [
        [each for each in annotations if each["image_id"] == image]
        for image in sorted(coco.getImgIds())
    ]
    most = max(map(len, images))

    def column(value, empty):
        return np.array(
            [
                [value(each) for each in image] + [empty] * (most - len(image))
                for image in images
            ]
        )

    result = {"labels": column(lambda each: each["category_id"], -1)}
    if kind == "segm":
        result["masks"] = [[coco.annToRLE(each) for each in image] for image in images]
    else:
        result["boxes"] = column(lambda each: each["bbox"], [0.0] * 4)
    if "score" in annotations[0]:
        result["scores"] = column(lambda each: each["score"], 0.0)
    else:
        result["area"] = column(lambda each: each["area"], 0.0)
        result["is_crowd"] = column(lambda each: each["iscrowd"], 0)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    folder = parser.parse_args().data
    checks = (check_captions, check_detection, check_coco_api, check_panoptic)
    failed = False
    for number, check in enumerate(checks, 1):
        print(f"[{number}/{len(checks)}] {check.__name__} ...", flush=True)
        for name, cases, difference, allowed in check(folder):
            failed |= not difference <= allowed
            verdict = "" if difference <= allowed else "  TOO LARGE"
            print(
                f"    {name:32} {cases:5} cases, largest difference {difference:.1e} "
                f"(allowed {allowed:.0e}){verdict}"
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
