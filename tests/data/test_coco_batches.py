"""How the readers of COCO's formats make batches, alone and with workers."""

import pickle
import tarfile

import keras
import numpy as np
import pytest
from coco_folders import (
    assert_same,
    boxes_folder,
    brightness,
    numbered_folder,
    numbers,
    quietly,
)
from PIL import Image

from keras_reward.data.coco import CocoBoxes


def test_every_epoch_has_each_image_once_in_its_own_order(tmp_path):
    folder = numbered_folder(tmp_path, 10)
    make = lambda seed: CocoBoxes(  # noqa: E731
        *folder, (4, 4), batch_size=4, shuffle=True, seed=seed
    )
    dataset = make(3)
    epochs = []
    for _ in range(3):
        epochs.append(numbers(dataset))
        dataset.on_epoch_end()
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({*map(tuple, epochs), tuple(range(10))}) == 4
    assert numbers(make(3)) == epochs[0]
    assert numbers(make(4)) != epochs[0]
    unshuffled = CocoBoxes(*folder, (4, 4), batch_size=4)
    unshuffled.on_epoch_end()
    assert numbers(unshuffled) == list(range(10))


def test_a_dataset_begins_at_any_epoch(tmp_path):
    folder = numbered_folder(tmp_path, 10)
    dataset = CocoBoxes(*folder, (4, 4), batch_size=4, shuffle=True, seed=3)
    for epoch in (2, 0, 7):
        dataset.set_epoch(epoch)
        expected = np.random.default_rng((3, epoch)).permutation(10)
        assert numbers(dataset) == expected.tolist()
    dataset.on_epoch_end()
    assert numbers(dataset) == np.random.default_rng((3, 8)).permutation(10).tolist()


def test_last_batch_is_smaller_or_left_out(tmp_path):
    folder = numbered_folder(tmp_path, 10)
    dataset = CocoBoxes(*folder, (4, 4), batch_size=4)
    assert [len(images) for images, _ in dataset] == [4, 4, 2]
    dataset = CocoBoxes(*folder, (4, 4), batch_size=4, drop_remainder=True)
    assert [len(images) for images, _ in dataset] == [4, 4]
    for index in (2, -1):
        with pytest.raises(IndexError, match=f"2 batches. Received: {index}"):
            dataset[index]
    with pytest.raises(ValueError, match="no batch of images: 10 usable"):
        CocoBoxes(*folder, (4, 4), batch_size=11, drop_remainder=True)
    with pytest.raises(ValueError, match=r"Received: image_size=\(4, 0\)"):
        CocoBoxes(*folder, (4, 0))


@pytest.mark.parametrize("use_multiprocessing", [True, False])
def test_two_workers_give_the_same_epochs_as_none(tmp_path, use_multiprocessing):
    images, annotations = boxes_folder(tmp_path)
    options = {"image_size": (8, 8), "batch_size": 2, "shuffle": True}
    options["transform"] = brightness
    parallel = {"workers": 2, "use_multiprocessing": use_multiprocessing}
    alone = quietly(CocoBoxes, images, annotations, **options)
    together = quietly(CocoBoxes, images, annotations, **options, **parallel)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    orders = set()
    for _ in range(3):
        expected = np.concatenate([x for x, _ in alone])
        alone.on_epoch_end()
        got = model.predict(together, verbose=0)
        np.testing.assert_array_equal(got, expected)
        orders.add(tuple(expected[:, 0].tolist()))
    assert len(orders) == 3


def test_a_model_trains_on_batches_read_by_workers(tmp_path):
    images, annotations = boxes_folder(tmp_path)
    dataset = quietly(
        *(CocoBoxes, images, annotations),
        **{"image_size": (8, 8), "batch_size": 3, "drop_remainder": True},
        **{"shuffle": True, "workers": 2},
        transform=brightness,
    )
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    losses = model.fit(dataset, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and len(set(losses)) == 3


def test_a_pickled_data_set_gives_the_same_batches(tmp_path):
    images, annotations = boxes_folder(tmp_path)
    dataset = quietly(CocoBoxes, images, annotations, (8, 8), batch_size=4)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == len(dataset) == 2
    for batch, other in zip(copy, dataset, strict=True):
        assert_same(batch, other)


def test_transform_makes_the_batch(tmp_path):
    folder = numbered_folder(tmp_path, 2)
    dataset = CocoBoxes(
        *folder, (4, 4), transform=lambda images, targets: (images.shape, *targets)
    )
    assert dataset[0] == ((2, 4, 4, 3), "boxes", "labels", "is_crowd", "area")


def test_a_tar_file_is_read_in_place(tmp_path):
    images, annotations = boxes_folder(tmp_path)
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(images, arcname=".")
    from_folder = quietly(CocoBoxes, images, annotations, (8, 8))
    from_tar = quietly(CocoBoxes, archive, annotations, (8, 8))
    assert_same(from_tar[0], from_folder[0])

    with tarfile.open(archive, "w") as tar:
        tar.add(f"{images}/1.png", arcname="1.png")
    dataset = quietly(CocoBoxes, archive, annotations, (8, 8))
    assert len(dataset.problems["missing image"]) == 6
    assert dataset.problems["missing image"][0] == f"{archive}:2.png"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(f"{images}/1.png", arcname="1.png")
    with pytest.raises(ValueError, match=r"uncompressed tar file.*images.tar"):
        CocoBoxes(archive, annotations, (8, 8))


def test_grey_and_transparent_images_become_rgb(tmp_path):
    folder = numbered_folder(tmp_path, 2)
    grey = Image.fromarray(np.full((4, 4), 51, "uint8"))
    grey.save(tmp_path / "images" / "0.png")
    grey.convert("RGBA").save(tmp_path / "images" / "1.png")
    images, _ = CocoBoxes(*folder, (4, 4))[0]
    np.testing.assert_array_equal(images, np.full((2, 4, 4, 3), np.float32(0.2)))
