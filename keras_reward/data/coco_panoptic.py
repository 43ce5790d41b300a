"""Reader of COCO's panoptic format."""

import numpy as np

from keras_reward.data.coco_crowds import crowd_of
from keras_reward.data.coco_dataset import CocoDataset
from keras_reward.data.coco_files import (
    choose_classes,
    is_id,
    is_integer,
    read_categories,
)
from keras_reward.data.image_dataset import read_checked, resize
from keras_reward.data.image_files import ImageFiles

VOID = 0
LARGEST_ID = 256**3 - 1  # that a colour encodes
ID_OF_RGB = np.array([1, 256, 256**2], "int32")  # a map's colours encode an id


class CocoPanoptic(CocoDataset):
    """Images with panoptic maps.

    Targets are maps of class and instance, `(batch, H, W, 2)` int32, for panoptic
    rewards and `PanopticQuality`. Class 0 is void, class k is `class_names[k - 1]`. The
    things of an image have instances 1, 2, ..., negative for crowds; stuff has instance
    0. The attribute `stuff_classes` has the classes of stuff. Maps are resized by
    nearest neighbour, so a tiny segment may vanish.

    Images without a map are left out and counted in `problems`. A segment becomes void
    and is counted if the file does not have its category, or if the JSON does not list
    it. The latter is only found when the map is read, with a warning. A segment whose
    id no colour encodes, or one that was listed before, is left out and counted.

    Args:
        images, annotations, maps, image_size: see `CocoDataset`; `maps` is the folder
            or tar file of the PNG maps. `coco_files` finds the first three.
        categories: names of the classes to keep, in the order of their labels; others
            become void. Default None: all classes in the file, in the order of their
            ids.
        **arguments: further arguments of `CocoDataset`.

    Example:

    ```python
    import json
    import pathlib
    import numpy as np
    from PIL import Image
    from keras_reward.data import CocoPanoptic

    pathlib.Path("maps").mkdir()
    Image.fromarray(np.zeros((2, 4, 3), "uint8")).save("1.png")
    ids = np.array([[9, 9, 0, 8]] * 2)  # one number for each pixel: red + 256 green ...
    Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1).astype("uint8")).save(
        "maps/1.png"
    )
    annotations = {
        "images": [{"id": 1, "file_name": "1.png", "height": 2, "width": 4}],
        "categories": [
            {"id": 17, "name": "cat", "isthing": 1},
            {"id": 187, "name": "sky", "isthing": 0},
        ],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "1.png",
                "segments_info": [
                    {"id": 9, "category_id": 17, "iscrowd": 0},
                    {"id": 8, "category_id": 187, "iscrowd": 0},
                ],
            }
        ],
    }
    with open("panoptic.json", "w") as file:
        json.dump(annotations, file)
    dataset = CocoPanoptic(".", "panoptic.json", "maps", image_size=(2, 4))
    dataset[0][1][0, 0]  # [[1, 1], [1, 1], [0, 0], [2, 0]]
    dataset.stuff_classes  # (2,)
    ```

    Reference: Kirillov et al. 2019, "Panoptic segmentation".
    """

    def __init__(
        self, images, annotations, maps, image_size, categories=None, **arguments
    ):
        self.categories = categories
        self._maps = ImageFiles(maps)
        super().__init__(images, annotations, image_size, **arguments)

    def annotate(self, data, images):
        path = self.annotations
        categories = read_categories(data, path)
        self.class_names = choose_classes(categories, self.categories, path)
        is_thing = {c["name"]: c.get("isthing", 1) for c in categories.values()}
        self.stuff_classes = tuple(
            label
            for label, name in enumerate(self.class_names, start=1)
            if not is_thing[name]
        )
        self._labels = {n: label for label, n in enumerate(self.class_names, start=1)}
        found = {}
        for annotation, image, name in self.known_annotations(data, images):
            file_name = annotation.get("file_name")
            segments = annotation.get("segments_info")
            is_list = isinstance(segments, list) and all(map(is_segment, segments))
            if not isinstance(file_name, str) or not is_list:
                self.problems["malformed annotation"].append(name)
            elif self._maps.leads_out(file_name):
                path = self._maps.path_of(file_name)
                self.problems["map outside its folder"].append(path)
            elif file_name not in self._maps:
                self.problems["missing map"].append(self._maps.path_of(file_name))
            else:
                rows = self._segments(segments, categories, name)
                found[image["id"]] = (file_name, rows)
        for image_id in images:
            if image_id not in found:
                self.problems["image without a map"].append(f"image {image_id}")
        return found

    def target(self, item, placement):
        file_name, segments = item.annotation
        image = read_checked(self._maps, file_name, item)
        rgb = resize(image, placement, self.image_size, "NEAREST")
        ids, index = np.unique(rgb @ ID_OF_RGB, return_inverse=True)
        unlisted = [i for i in ids.tolist() if i not in segments and i != VOID]
        if unlisted:
            self.warn_once(
                "segment not in the JSON file",
                f"{self._maps.path_of(file_name)}: {unlisted}",
                "It becomes void.",
            )
        table = [segments.get(i, (VOID, 0)) for i in ids.tolist()]
        return np.array(table, "int32")[index.reshape(self.image_size)]

    def collate(self, targets):
        return np.stack(targets)

    def _segments(self, segments, categories, name):
        """`(class, instance)` by id in the map."""
        found, things, stuff = {}, 0, set(self.stuff_classes)
        for segment in segments:
            number = segment["id"]
            which = f"segment {number} in {name}"
            if not 0 < number <= LARGEST_ID:
                self.problems["segment with an impossible id"].append(which)
                continue
            if number in found:
                self.problems["duplicate segment id"].append(which)
                continue
            category = categories.get(segment["category_id"])
            if category is None:
                self.problems["segment of an unknown category"].append(which)
            if category is None or category["name"] not in self._labels:
                found[number] = (VOID, 0)
                continue
            label = self._labels[category["name"]]
            instance = 0
            if label not in stuff:
                things += 1
                instance = -things if crowd_of(segment) else things
            found[number] = (label, instance)
        return found


def is_segment(segment):
    """Whether a JSON value is a valid segment."""
    if not isinstance(segment, dict) or crowd_of(segment) is None:
        return False
    return is_integer(segment.get("id")) and is_id(segment.get("category_id"))
