"""Reading prepared data: the order of batches, where they resume, and what one batch holds."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from cub_folder import NUM_ATTRIBUTES, write_cub_folder

from data_prep.cub200 import prepare
from spectra_jax.batches import BatchPlan, flips
from spectra_jax.data import array_batches, flip_example, open_dataset

SIZE = 10


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    parent = tmp_path_factory.mktemp("birds")
    write_cub_folder(parent / "source", per_class=14)
    return prepare(parent / "source", parent / "cache", progress=False)  # 18 train, 3 validation, 21 test


@pytest.fixture
def dataset(prepared):
    return open_dataset(prepared)


def assert_same(one, two):
    for left, right in zip(one, two, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


# Single examples, arrays and names


def test_examples_arrays_and_source_agree(dataset):
    arrays = dataset.arrays("test", image_size=(30, 41))  # the stored size: nothing is resampled
    assert arrays.inputs.dtype == np.uint8 and arrays.inputs.shape == (21, 30, 41, 3)
    assert (arrays.attributes.dtype, arrays.labels.dtype) == (np.float32, np.int32)
    assert len(dataset.source("test")) == dataset.num_examples("test") == 21
    assert arrays.image_ids.tolist() == sorted(arrays.image_ids.tolist())
    for i in range(21):
        example = dataset.example("test", i)
        np.testing.assert_array_equal(example["image"], arrays.inputs[i])
        np.testing.assert_array_equal(example["attributes"], arrays.attributes[i])
        assert (example["label"], example["image_id"]) == (arrays.labels[i], arrays.image_ids[i])
        assert isinstance(example["path"], str)


def test_train_and_validation_together(dataset):
    parts = [dataset.arrays(split, image_size=4) for split in ("train", "validation")]
    both = dataset.arrays("train+validation", image_size=4)
    assert_same(both, [np.concatenate(pair) for pair in zip(*parts, strict=True)])


def test_unknown_split(dataset):
    with pytest.raises(ValueError, match="split='dev': expected one of train, validation, test"):
        dataset.num_examples("dev")


def test_a_folder_that_is_not_prepared(tmp_path):
    with pytest.raises(ValueError, match=r"data_prep\.cub200\.prepare"):
        open_dataset(tmp_path)


def test_only_the_prepared_folder_is_read(prepared, tmp_path):
    moved = shutil.copytree(prepared, tmp_path / "elsewhere")
    assert_same(open_dataset(moved).arrays("train", image_size=8), open_dataset(prepared).arrays("train", image_size=8))


@pytest.mark.parametrize("name", ["Fixture_B", "fixture_b", "Fixture B", 1, "1", np.int64(1)])
def test_find_class(dataset, name):
    assert dataset.info.find_class(name) == 1


def test_find_suggests_and_refuses(dataset):
    info = dataset.info
    numbers = dataclasses.replace(info, class_names=("10", "0", "grey cat"))
    assert [numbers.find_class(name) for name in ("10", "0", 0, "2", "Grey cat", "grey_cat")] == [0, 1, 0, 2, 2, 2]
    assert info.find_attribute("HAS_FIXTURE_1::kind_2") == info.find_attribute(2) == 2
    with pytest.raises(ValueError, match=r"no attribute named 'fixture_1::kind_2'; did you mean has_fixture_1::kind_2"):
        info.find_attribute("fixture_1::kind_2")
    with pytest.raises(ValueError, match="no class has the 0-based id 7 here; there are 3, from 0 to 2"):
        info.find_class(7)
    with pytest.raises(ValueError, match="names look like Fixture_A"):
        info.find_class("zzz")


def test_flipping_an_example_swaps_left_and_right_parts(dataset):
    example = dataset.example("train", 0)
    flipped = flip_example(example, dataset.info)
    width = example["image"].shape[1]
    left, right, back, tail = (dataset.info.part_names.index(p) for p in ("left eye", "right eye", "back", "tail"))
    np.testing.assert_array_equal(flipped["image"], example["image"][:, ::-1])
    np.testing.assert_array_equal(flipped["parts"][left], example["parts"][right] * [-1, 1, 1] + [width, 0, 0])
    np.testing.assert_array_equal(flipped["parts"][tail], example["parts"][tail] * [-1, 1, 1] + [width, 0, 0])
    np.testing.assert_array_equal(flipped["parts"][back], 0)  # invisible stays 0 0 0
    np.testing.assert_array_equal(flipped["attributes"], example["attributes"])
    twice = flip_example(flipped, dataset.info)
    for key, value in example.items():
        np.testing.assert_array_equal(twice[key], value)


# Batches


def test_batches_hold_the_split_and_mark_padding(dataset):
    arrays = dataset.arrays("test", image_size=SIZE)
    batches = list(dataset.batches("test", batch_size=8, image_size=SIZE))
    assert [int(batch.valid.sum()) for batch in batches] == [8, 8, 5]
    for k, batch in enumerate(batches):
        assert batch.inputs.shape == (8, SIZE, SIZE, 3) and batch.inputs.dtype == np.float32
        assert batch.attributes.shape == (8, NUM_ATTRIBUTES) and batch.attributes.dtype == np.float32
        assert batch.labels.dtype == np.int32 and batch.valid.dtype == bool
        rows = slice(8 * k, 8 * k + int(batch.valid.sum()))
        np.testing.assert_allclose(batch.inputs[batch.valid] * 255, arrays.inputs[rows], atol=1e-4)
        np.testing.assert_array_equal(batch.labels[batch.valid], arrays.labels[rows])
        np.testing.assert_array_equal(batch.attributes[batch.valid], arrays.attributes[rows])
    padding = batches[-1]
    assert not padding.inputs[5:].any() and not padding.attributes[5:].any() and not padding.labels[5:].any()
    assert len(list(dataset.batches("test", batch_size=8, image_size=SIZE, drop_remainder=True))) == 2


OPTIONS = {"batch_size": 8, "image_size": SIZE, "seed": 3, "shuffle": True, "flip": True, "num_epochs": 3}


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_batches_depend_on_the_seed_alone(dataset, prepared, workers, cache_bytes):
    other = open_dataset(prepared, cache_bytes=cache_bytes).batches("train", **OPTIONS, workers=workers)
    batches = list(dataset.batches("train", **OPTIONS, workers=2))
    assert len(batches) == 9
    for one, two in zip(batches, other, strict=True):
        assert_same(one, two)
    changed = next(dataset.batches("train", **OPTIONS | {"seed": 4}))
    assert not np.array_equal(changed.inputs, batches[0].inputs)


def test_every_epoch_is_another_order_of_everything(dataset):
    plan = BatchPlan(18, 8, seed=3, shuffle=True, num_epochs=3)
    orders = [np.concatenate([plan.rows(3 * e + k).indices for k in range(3)]).tolist() for e in range(3)]
    assert all(sorted(order) == list(range(18)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_is_pinned():
    # Recorded once. If this fails, runs no longer repeat what an older version of this package did.
    rows = BatchPlan(12, 12, seed=7, shuffle=True, num_epochs=2)
    assert rows.rows(0).indices.tolist() == PINNED[0]
    assert rows.rows(1).indices.tolist() == PINNED[1]
    assert flips(7, 1, np.arange(12), 12).astype(int).tolist() == PINNED[2]


PINNED = (
    [8, 4, 1, 6, 3, 2, 11, 7, 5, 9, 10, 0],
    [11, 3, 9, 1, 6, 2, 5, 4, 8, 0, 7, 10],
    [0, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 1],
)


def test_flips_are_fair_and_decided_by_index(dataset):
    drawn = np.stack([flips(0, epoch, np.arange(5000), 5000) for epoch in range(4)])
    assert abs(drawn.mean() - 0.5) < 0.02
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.06
    np.testing.assert_array_equal(flips(0, 1, np.array([9, 3]), 5000), drawn[1, [9, 3]])
    plain = next(dataset.batches("train", **OPTIONS | {"flip": False, "batch_size": 18}))
    batch = next(dataset.batches("train", **OPTIONS | {"batch_size": 18}))
    order = BatchPlan(18, 18, seed=3, shuffle=True).rows(0).indices
    mirrored = flips(3, 0, order, 18)
    assert 0 < mirrored.sum() < 18
    np.testing.assert_array_equal(batch.inputs[~mirrored], plain.inputs[~mirrored])
    np.testing.assert_array_equal(batch.inputs[mirrored], plain.inputs[mirrored, :, ::-1])
    np.testing.assert_array_equal(batch.attributes, plain.attributes)


@pytest.mark.parametrize("position", range(10))
def test_resuming_goes_on_at_the_very_next_batch(dataset, position):
    expected = list(dataset.batches("train", **OPTIONS))
    iterator = dataset.batches("train", **OPTIONS)
    for _ in range(position):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    assert (iterator.step, state["step"]) == (position, position)
    resumed = dataset.batches("train", **OPTIONS, workers=0)
    resumed.set_state(state)
    rest = list(resumed)
    assert len(rest) == 9 - position
    for one, two in zip(expected[position:], rest, strict=True):
        assert_same(one, two)
    iterator.set_state(state | {"step": 0})  # and back, in the middle of prefetching
    assert_same(next(iterator), expected[0])


@pytest.mark.parametrize("change", [{"seed": 4}, {"batch_size": 6}, {"flip": False}, {"image_size": 12}])
def test_a_position_in_other_batches_is_refused(dataset, change):
    state = dataset.batches("train", **OPTIONS).get_state()
    with pytest.raises(ValueError, match=f"belongs to other batches: {next(iter(change))} differ"):
        dataset.batches("train", **OPTIONS | change).set_state(state)
    with pytest.raises(ValueError, match="step 10 is outside the run's 9 batches"):
        dataset.batches("train", **OPTIONS).set_state(state | {"step": 10})


def test_endless_batches_can_be_entered_anywhere(dataset):
    endless = dataset.batches("train", **OPTIONS | {"num_epochs": None})
    assert endless.num_batches is None and endless.batches_per_epoch == 3
    expected = [next(endless) for _ in range(11)]
    assert_same(expected[8], list(dataset.batches("train", **OPTIONS))[8])
    endless.set_state(endless.get_state() | {"step": 10})
    assert_same(next(endless), expected[10])
    endless.close()


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_shares_of_all_processes_are_the_global_batches(dataset, count, drop_remainder):
    options = OPTIONS | {"drop_remainder": drop_remainder}
    whole = list(dataset.batches("train", **options))
    shares = [list(dataset.batches("train", **options, process_index=i, process_count=count)) for i in range(count)]
    for k, batch in enumerate(whole):
        together = [np.concatenate(columns) for columns in zip(*(share[k] for share in shares), strict=True)]
        assert_same(batch, together)
    assert {len(share) for share in shares} == {len(whole)}


def test_a_run_may_go_on_with_another_number_of_processes(dataset):
    alone = dataset.batches("train", **OPTIONS)
    next(alone)
    share = dataset.batches("train", **OPTIONS, process_index=1, process_count=2)
    share.set_state(alone.get_state())
    np.testing.assert_array_equal(next(share).inputs, next(alone).inputs[4:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 9, "process_count": 2}, "batch_size=9 .* multiple of process_count=2"),
        ({"process_index": 1}, "process_index=1: expected 0 to 0"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"seed": None, "flip": False}, "shuffle=True needs a seed"),
        ({"seed": None, "shuffle": False}, "flip=True needs a seed"),
        ({"batch_size": 19, "drop_remainder": True}, "leaves no batch: 18 examples, batch_size=19"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_options_out_of_range(dataset, change, message):
    with pytest.raises(ValueError, match=message):
        dataset.batches("train", **OPTIONS | change)


def test_images_are_decoded_once_within_the_budget(prepared, monkeypatch):
    import spectra_jax.data as data

    decoded = []
    original = data._decode
    monkeypatch.setattr(data, "_decode", lambda *arguments: decoded.append(1) or original(*arguments))
    needed = 18 * SIZE * SIZE * 3
    for budget, keep, count in ((needed, True, 18), (needed - 1, True, 54), (needed, False, 54)):
        decoded.clear()
        dataset = open_dataset(prepared, cache_bytes=budget)
        list(dataset.batches("train", **OPTIONS, workers=0, keep_decoded=keep))
        assert len(decoded) == count


def test_handed_out_batches_may_be_changed(dataset):
    first = next(dataset.batches("train", **OPTIONS))
    kept = first.inputs.copy()
    first.inputs[:] = 0
    dataset.arrays("train", image_size=SIZE).inputs[:] = 0
    np.testing.assert_array_equal(next(dataset.batches("train", **OPTIONS)).inputs, kept)


def test_errors_while_decoding_reach_the_caller(dataset, monkeypatch):
    import spectra_jax.data as data

    monkeypatch.setattr(data, "_decode", lambda *_: (_ for _ in ()).throw(OSError("no such pixels")))
    with pytest.raises(OSError, match="no such pixels"):
        next(dataset.batches("train", **OPTIONS))


# Arrays in memory


def test_array_batches_follow_the_same_order(dataset):
    arrays = dataset.arrays("train", image_size=SIZE)
    images = arrays.inputs.astype(np.float32) / np.float32(255)
    options = {key: value for key, value in OPTIONS.items() if key not in ("image_size", "flip")}
    from_memory = array_batches(images, arrays.attributes, arrays.labels, **options)
    for one, two in zip(from_memory, dataset.batches("train", image_size=SIZE, **options), strict=True):
        assert_same(one, two)


def test_array_batches_of_features_resume_and_share():
    rng = np.random.default_rng(0)
    features, attributes, labels = rng.normal(size=(11, 7)), rng.integers(0, 2, (11, 5)), rng.integers(0, 3, 11)
    options = {"batch_size": 4, "seed": 0, "shuffle": True, "num_epochs": None}
    iterator = array_batches(features, attributes, labels, **options)
    expected = [next(iterator) for _ in range(7)]
    assert expected[0].inputs.dtype == expected[0].attributes.dtype == np.float32
    other = array_batches(features, attributes, labels, **options, process_index=1, process_count=2, workers=0)
    other.set_state(json.loads(json.dumps(iterator.get_state())) | {"step": 5})
    np.testing.assert_array_equal(next(other).inputs, expected[5].inputs[2:])
    assert expected[2].valid.tolist() == [True, True, True, False]
    with pytest.raises(ValueError, match="have 11, 10 and 11 rows"):
        array_batches(features, attributes[:10], labels, batch_size=4)
    with pytest.raises(ValueError, match="empty"):
        array_batches(features[:0], attributes[:0], labels[:0], batch_size=4)
