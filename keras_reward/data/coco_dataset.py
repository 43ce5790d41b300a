"""The base class of the readers of COCO's formats."""

from keras_reward.data.coco_files import is_id, is_integer, read_annotations
from keras_reward.data.image_dataset import ImageDataset, Item
from keras_reward.data.image_files import MAX_PIXELS, shown


class CocoDataset(ImageDataset):
    """Base class of the readers: batches of resized images with their targets.

    A batch is `(images, targets)`: images `(batch, H, W, 3)` float32 in [0, 1], targets
    depend on the subclass. Use `CocoBoxes`, `CocoCaptions` or `CocoPanoptic`.

    Subclasses implement `annotate`, `target` and `collate`.

    Args:
        images: a folder of images, or an uncompressed tar file of them, which is read
            in place.
        annotations: path of the JSON file.
        image_size: `(height, width)` of the images in a batch.
        batch_size: number of images in a batch. Default 32.
        shuffle: whether each epoch has its own order, which follows from `seed` and
            the number of the epoch, see `set_epoch`. Default False.
        seed: int, seed of the orders. Default 0.
        pad_to_aspect_ratio: if False (default), images are stretched to `image_size`.
            If True, they keep their aspect ratio and are padded with black.
        drop_remainder: whether to leave out the last batch if it is not full, so that
            all have the same shape; with `shuffle`, other images are left out in each
            epoch. Default False: the last batch may be smaller.
        check_images: whether to decode every file once, at the start, so that broken
            ones are left out and counted. Default False: see below.
        transform: optional function of `images` and `targets` that returns the batch,
            such as `(x, y, sample_weight)`. It runs in the workers.
        **workers: Keras's `workers`, `use_multiprocessing` and `max_queue_size`.

    Files come from others, and are not trusted. A `file_name` that leads out of the
    folder of images, by `..` or by a link, is a problem, and so is an image of more
    than 89,478,485 pixels (a quarter of a GiB), which is not decoded. Ids are strings
    or integers of 64 bits.

    Problems with the files are counted in `problems`, a dict from a description to a
    list of the paths or ids, and summarized in one warning. The rest of the data is
    used; of several images with the same id, the first one. If a file turns out to be
    broken during an epoch, a warning reports its path, and the next image of the
    dataset replaces it in the batch, always the same one, with or without workers.
    Worker processes (`use_multiprocessing=True`) have copies of `problems`: what they
    find is not counted, and they warn again in each epoch. `check_images=True` finds
    and counts broken files at the start, in all cases. Use it for evaluation data, so
    that no image is evaluated twice.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if the JSON is broken or not COCO's, if two of its categories have
            the same id or name, or if no image is left.
    """

    def annotate(self, data, images):
        """Reads the annotations of all images.

        Args:
            data: the JSON file's dictionary.
            images: the JSON file's image entries by id, including missing images.

        Returns:
            A dict from image ids to annotations, small enough to be sent to workers.
            Images that are not in it are left out.
        """
        raise NotImplementedError

    def known_annotations(self, data, images):
        """The annotations of images that exist: `(annotation, image entry, name)`."""
        for number, annotation in enumerate(data["annotations"]):
            if not isinstance(annotation, dict) or not is_id(
                annotation.get("image_id")
            ):
                self.problems["malformed annotation"].append(f"number {number}")
                continue
            image_id = annotation["image_id"]
            number = annotation.get("id", number)
            name = shown(f"annotation {number} of image {image_id}")
            if image_id in images:
                yield annotation, images[image_id], name
            else:
                self.problems["annotation of an unknown image"].append(name)

    def read_items(self):
        data = read_annotations(self.annotations)
        images = {}
        for entry in data["images"]:
            if not is_image_entry(entry):
                self.problems["malformed image entry"].append(ascii(entry)[:80])
                continue
            name = f"image {shown(str(entry['id']))}: {shown(entry['file_name'])}"
            if entry["height"] * entry["width"] > MAX_PIXELS:
                self.problems[f"image of more than {MAX_PIXELS} pixels"].append(name)
            elif entry["id"] in images:
                self.problems["duplicate image id"].append(name)
            else:
                images[entry["id"]] = entry
        found = self.annotate(data, images)
        items = []
        for image_id, entry in images.items():
            name = entry["file_name"]
            if self._files.leads_out(name):
                path = self._files.path_of(name)
                self.problems["image outside its folder"].append(path)
            elif name not in self._files:
                self.problems["missing image"].append(self._files.path_of(name))
            elif image_id in found:
                size = (entry["height"], entry["width"])
                items.append(Item(image_id, name, *size, found[image_id]))
        return items


def is_image_entry(entry):
    """Whether a JSON value is a valid image entry."""
    if not isinstance(entry, dict):
        return False
    sizes = [entry.get("height"), entry.get("width")]
    return (
        is_id(entry.get("id"))
        and isinstance(entry.get("file_name"), str)
        and all(is_integer(size) and size > 0 for size in sizes)
    )
