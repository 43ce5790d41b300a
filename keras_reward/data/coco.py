"""Readers of COCO's boxes, masks and captions."""

import numpy as np

from keras_reward.data.coco_crowds import crowd_of
from keras_reward.data.coco_dataset import CocoDataset
from keras_reward.data.coco_files import (
    choose_classes,
    is_id,
    is_number,
    read_categories,
)
from keras_reward.data.coco_masks import import_masks, run_lengths
from keras_reward.data.image_dataset import resize
from keras_reward.data.image_files import MAX_PIXELS, import_pillow
from keras_reward.data.vocabulary import split

PAD_LABEL = -1


class CocoBoxes(CocoDataset):
    """Images with boxes, from COCO's "instances" files or files of boxes alone.

    Targets are a dict for detection rewards and `CocoDetection`, in pixels of the
    resized image: `boxes` `(batch, max_boxes, 4)` float32 in "xyxy", `labels`
    `(batch, max_boxes)` int32 and -1 for padding, `is_crowd` bool and `area` float32,
    and with `masks=True` also `masks` `(batch, max_boxes, H, W)` uint8 of 0 and 1.

    Labels count from 0 in the order of `class_names`. COCO's metrics by size, such as
    `map_small`, have thresholds in pixels, so they depend on `image_size`.

    Left out and counted in `problems` are boxes outside their image, without area, or
    of a category that the file does not have. Boxes over the edge are clipped, and
    counted if more than a pixel is cut off. An `area` that is negative, or larger than
    any image may be, is counted and replaced by that of the box. Annotations whose
    `bbox` is not four numbers, whose `iscrowd` is neither 0 nor 1, or, with masks,
    whose `segmentation` does not fit its image are left out and counted as malformed.
    Images without boxes are kept, with padding only.

    Args:
        images, annotations, image_size: see `CocoDataset`; `coco_files` finds the
            first two.
        max_boxes: maximum number of boxes in an image. If there are more, the first
            ones are kept, with crowds last, and the image is counted in `problems`.
            Default 100.
        categories: names of the classes to keep, in the order of their labels. Default
            None: all classes in the file, in the order of their ids.
        keep_empty: whether to keep images without boxes. They earn no reward, but
            belong to an evaluation. Default True.
        keep_crowds: whether to keep boxes around crowds, with `is_crowd`. The official
            evaluation needs them. Leave them out for training and for rewards, which
            ignore `is_crowd`. Default True.
        masks: whether to add masks, resized by nearest neighbour. Needs pycocotools
            (`pip install pycocotools`). Default False.
        **arguments: further arguments of `CocoDataset`.

    Example:

    ```python
    import json
    import numpy as np
    from PIL import Image
    from keras_reward.data import CocoBoxes

    Image.fromarray(np.zeros((40, 80, 3), "uint8")).save("1.png")
    annotations = {
        "images": [{"id": 1, "file_name": "1.png", "height": 40, "width": 80}],
        "categories": [{"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 17, "bbox": [20, 10, 40, 20]}
        ],
    }
    with open("boxes.json", "w") as file:
        json.dump(annotations, file)
    dataset = CocoBoxes(".", "boxes.json", image_size=(32, 32), max_boxes=3)
    images, targets = dataset[0]  # (1, 32, 32, 3)
    targets["boxes"][0, 0]  # [8, 8, 24, 24]
    targets["labels"]  # [[0, -1, -1]], dataset.class_names is ("cat",)
    ```

    Reference: Lin et al. 2014, "Microsoft COCO: common objects in context".
    """

    def __init__(
        self,
        images,
        annotations,
        image_size,
        max_boxes=100,
        categories=None,
        keep_empty=True,
        keep_crowds=True,
        masks=False,
        **arguments,
    ):
        self.max_boxes = max_boxes
        self.categories = categories
        self.keep_empty = keep_empty
        self.keep_crowds = keep_crowds
        self.masks = masks
        super().__init__(images, annotations, image_size, **arguments)

    def annotate(self, data, images):
        path = self.annotations
        categories = read_categories(data, path)
        self.class_names = choose_classes(categories, self.categories, path)
        numbers = {name: label for label, name in enumerate(self.class_names)}
        labels = {
            category: numbers[entry["name"]]
            for category, entry in categories.items()
            if entry["name"] in numbers
        }
        found = {image_id: [] for image_id in images}
        for annotation, image, name in self.known_annotations(data, images):
            category = annotation.get("category_id")
            if not is_id(category) or category not in categories:
                self.problems["annotation of an unknown category"].append(name)
            elif category in labels:
                box = self._box(annotation, image, name)
                if box is not None:
                    found[image["id"]].append({**box, "labels": labels[category]})
        kept = {}
        for image_id, boxes in found.items():
            if not boxes:
                self.problems["image without boxes"].append(f"image {image_id}")
            if boxes or self.keep_empty:
                kept[image_id] = self._columns(boxes, image_id)
        return kept

    def target(self, item, placement):
        boxes = item.annotation
        across, down = placement.width / item.width, placement.height / item.height
        shift = [placement.left, placement.top] * 2
        target = {
            **boxes,
            "boxes": boxes["boxes"] * [across, down, across, down] + shift,
            "area": boxes["area"] * (across * down),
        }
        if self.masks:
            target["masks"] = [self._mask(rle, placement) for rle in boxes["masks"]]
        return target

    def collate(self, targets):
        shape = (len(targets), self.max_boxes)
        batch = {
            "boxes": np.zeros((*shape, 4), "float32"),
            "labels": np.full(shape, PAD_LABEL, "int32"),
            "is_crowd": np.zeros(shape, "bool"),
            "area": np.zeros(shape, "float32"),
        }
        if self.masks:
            batch["masks"] = np.zeros((*shape, *self.image_size), "uint8")
        for row, target in enumerate(targets):
            for key, values in target.items():
                if len(values):
                    batch[key][row, : len(values)] = values
        return batch

    def _box(self, annotation, image, name):
        """A dict of one box in pixels of the original image; None if unusable."""
        is_crowd = crowd_of(annotation)
        try:
            left, top, width, height = numbers_of(annotation["bbox"])
            (area,) = numbers_of([annotation.get("area", width * height)])
            mask = run_lengths(annotation["segmentation"], image) if self.masks else 0
        except (KeyError, TypeError, ValueError):
            is_crowd = None
        if is_crowd is None:
            self.problems["malformed annotation"].append(name)
            return None
        sides = [left, top, left + width, top + height]
        if not (np.isfinite(sides).all() and width > 0 and height > 0):
            self.problems["box without area"].append(name)
            return None
        ends = [image["width"], image["height"]] * 2
        inside = np.clip(sides, 0, ends)
        if not (inside[2:] > inside[:2]).all():
            self.problems["box outside its image"].append(name)
            return None
        if np.abs(inside - sides).max() > 1:
            self.problems["box over the edge of its image"].append(name)
        if not 0 <= area <= MAX_PIXELS:
            self.problems["impossible area"].append(name)
            area = float(np.prod(inside[2:] - inside[:2]))
        if is_crowd and not self.keep_crowds:
            return None
        box = {"boxes": inside, "area": area, "is_crowd": is_crowd}
        return {**box, "masks": mask} if self.masks else box

    def _columns(self, boxes, image_id):
        """A list of boxes as a dict of arrays, cut to `max_boxes`."""
        if len(boxes) > self.max_boxes:
            self.problems["image with more than max_boxes boxes"].append(
                f"image {image_id}: {len(boxes)}"
            )
            boxes = sorted(boxes, key=lambda box: box["is_crowd"])[: self.max_boxes]
        columns = {
            "boxes": np.array([box["boxes"] for box in boxes]).reshape(-1, 4),
            "labels": np.array([box["labels"] for box in boxes], "int32"),
            "is_crowd": np.array([box["is_crowd"] for box in boxes], "bool"),
            "area": np.array([box["area"] for box in boxes]),
        }
        if self.masks:
            columns["masks"] = [box["masks"] for box in boxes]
        return columns

    def _mask(self, rle, placement):
        pixels = import_masks().decode(rle)
        image = import_pillow().fromarray(pixels)
        return resize(image, placement, self.image_size, "NEAREST")


class CocoCaptions(CocoDataset):
    """Images with captions.

    Targets are token ids `(batch, max_captions, max_length)` int32, where absent
    captions are all padding; without a `vocabulary`, a list of strings for each image.

    Captions without words and images without captions are left out and counted in
    `problems`. Images with more than `max_captions` captions are counted too, and only
    the first ones are kept.

    Args:
        images, annotations, image_size: see `CocoDataset`; `coco_files` finds the
            first two.
        vocabulary: optional `Vocabulary`. It can be set later, since it is best made
            from the attribute `captions` of the training data. Default None.
        max_captions: maximum number of captions of an image. Default 5, the minimum
            in COCO.
        **arguments: further arguments of `CocoDataset`.

    Example:

    ```python
    import json
    import numpy as np
    from PIL import Image
    from keras_reward.data import CocoCaptions, Vocabulary

    Image.fromarray(np.zeros((40, 80, 3), "uint8")).save("1.png")
    annotations = {
        "images": [{"id": 1, "file_name": "1.png", "height": 40, "width": 80}],
        "annotations": [{"id": 5, "image_id": 1, "caption": "A black cat at night."}],
    }
    with open("captions.json", "w") as file:
        json.dump(annotations, file)
    dataset = CocoCaptions(".", "captions.json", image_size=(32, 32))
    dataset[0][1]  # [["A black cat at night."]]
    words = [text for texts in dataset.captions for text in texts]
    dataset.vocabulary = Vocabulary.from_captions(words, max_length=8)
    dataset[0][1]  # (1, 5, 8), all 0 but for the first caption
    ```

    Reference: Chen et al. 2015, "Microsoft COCO captions: data collection and
    evaluation server".
    """

    def __init__(
        self,
        images,
        annotations,
        image_size,
        vocabulary=None,
        max_captions=5,
        **arguments,
    ):
        self.vocabulary = vocabulary
        self.max_captions = max_captions
        super().__init__(images, annotations, image_size, **arguments)

    @property
    def captions(self):
        """A list of strings for each image, in the order of the images."""
        return [list(item.annotation) for item in self.items]

    def annotate(self, data, images):
        found = {image_id: [] for image_id in images}
        for annotation, image, name in self.known_annotations(data, images):
            caption = annotation.get("caption")
            if not is_text(caption):
                self.problems["malformed annotation"].append(name)
            elif not split(caption):
                self.problems["caption without words"].append(name)
            else:
                found[image["id"]].append(caption.strip())
        for image_id, captions in found.items():
            name = f"image {image_id}"
            if not captions:
                self.problems["image without captions"].append(name)
            if len(captions) > self.max_captions:
                kind = "image with more than max_captions captions"
                self.problems[kind].append(f"{name}: {len(captions)}")
        return {
            image_id: tuple(captions[: self.max_captions])
            for image_id, captions in found.items()
            if captions
        }

    def target(self, item, placement):
        return list(item.annotation)

    def collate(self, targets):
        if self.vocabulary is None:
            return list(targets)
        shape = (len(targets), self.max_captions, self.vocabulary.max_length)
        ids = np.zeros(shape, "int32")
        for row, captions in enumerate(targets):
            ids[row, : len(captions)] = self.vocabulary.encode(captions)
        return ids


def numbers_of(values):
    """A list of JSON's numbers as floats.

    Raises:
        TypeError: for anything else, such as a string of digits.
        ValueError: for an integer beyond what a float holds.
    """
    if not isinstance(values, list) or not all(map(is_number, values)):
        raise TypeError("must be a list of numbers")
    try:
        return [float(value) for value in values]
    except OverflowError as error:
        raise ValueError("must be numbers that a float holds") from error


def is_text(value):
    """Whether a JSON value is a string that can be written as UTF-8."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
