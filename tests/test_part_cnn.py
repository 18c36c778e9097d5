"""The part-aware model: each attribute is read where its part is, and maps are trained on part points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj
from experiments.runs.part_names import regions_of
from spectra_jax.training import TrainConfig, init_state, make_optimizer, make_train_step
from spectra_jax.types import Batch, PartBatch

REGIONS, READ_FROM, SIDE = ((0,), (1, 2)), (0, 0, 1, -1), 32


def built():
    model = sj.build_model(
        "part_cnn", num_attributes=4, num_classes=3, regions=REGIONS, attribute_regions=READ_FROM, widths=(8, 8, 16, 16)
    )
    return model, model.init(jax.random.key(0), (SIDE, SIDE, 3))


def images(count=2):
    return jax.random.uniform(jax.random.key(1), (count, SIDE, SIDE, 3))


def test_each_map_is_a_distribution_over_a_quarter_of_the_side():
    model, params = built()
    places = jnp.exp(model.log_places(params, images(3)))
    assert places.shape == (3, 2, SIDE // 4, SIDE // 4)
    np.testing.assert_allclose(places.sum(axis=(2, 3)), 1, rtol=1e-5)


def test_an_attribute_reads_the_features_of_its_region_alone():
    model, params = built()
    features = model.features(params, images())
    changed = features.at[:, :16].add(1)  # those of the first region, 16 wide
    moved = jnp.abs(model.bottleneck(params, changed) - model.bottleneck(params, features)).max(axis=0)
    assert (moved[:2] > 1e-4).all() and (moved[2:] == 0).all()
    whole = jnp.abs(model.bottleneck(params, features.at[:, 32:].add(1)) - model.bottleneck(params, features)).max(
        axis=0
    )
    assert (whole[:3] == 0).all() and whole[3] > 1e-4


def test_region_maps_share_a_point_among_the_places_around_it():
    parts = np.array([[[0.5, 0.5, 1], [0.125, 0.125, 1], [0.875, 0.125, 1], [0, 0, 0]]], np.float32)
    maps = np.asarray(sj.region_maps(jnp.asarray(parts), ((0,), (1, 2), (3,), (1, 3)), height=4, width=4))[0]
    middle = np.zeros((4, 4))
    middle[1:3, 1:3] = 0.25
    corners = np.zeros((4, 4))
    corners[0, 0] = corners[0, 3] = 0.5
    np.testing.assert_allclose(maps[0], middle)
    np.testing.assert_allclose(maps[1], corners)
    assert (maps[2] == 0).all()
    np.testing.assert_allclose(maps[3], np.where(corners > 0, [[1, 0, 0, 0]] * 4, 0))  # the visible one alone
    edge = sj.region_maps(jnp.array([[[0.0, 1.0, 1.0]]]), ((0,),), height=4, width=4)
    assert edge[0, 0, 3, 0] == 1


def test_part_loss_by_hand():
    log_places = jnp.log(jnp.array([[[[0.5, 0.25], [0.125, 0.125]], [[0.25, 0.25], [0.25, 0.25]]]]))
    places = jnp.array([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    np.testing.assert_allclose(sj.part_loss(log_places, places), np.log(2), rtol=1e-6)  # the hidden region is left out
    both = places.at[0, 1, 1, 1].set(1.0)
    np.testing.assert_allclose(sj.part_loss(log_places, both), (np.log(2) + np.log(4)) / 2, rtol=1e-6)
    padded = [jnp.concatenate([array, jnp.full_like(array, jnp.nan)]) for array in (log_places, both)]
    found = sj.part_loss(*padded, valid=jnp.array([True, False]))
    np.testing.assert_allclose(found, (np.log(2) + np.log(4)) / 2, rtol=1e-6)
    assert sj.part_loss(log_places, jnp.zeros_like(places)) == 0


def test_training_finds_a_part():
    """A bright square on noise: after some steps its map is where it is, and its colour is read from there."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, SIDE - 6, (64, 2))
    red = rng.integers(0, 2, 64)
    pictures = rng.uniform(0, 0.4, (64, SIDE, SIDE, 3)).astype(np.float32)
    for picture, (top, left), is_red in zip(pictures, corners, red, strict=True):
        picture[top : top + 6, left : left + 6] = [0.9, 0.1, 0.1] if is_red else [0.1, 0.1, 0.9]
    centres = np.stack([(corners[:, 1] + 3) / SIDE, (corners[:, 0] + 3) / SIDE, np.ones(64)], axis=-1)
    batch = PartBatch(
        jnp.asarray(pictures), jnp.asarray(red[:, None], jnp.float32), jnp.asarray(red, jnp.int32), jnp.ones(64, bool),
        jnp.asarray(centres[:, None], jnp.float32),
    )  # fmt: skip
    model = sj.build_model(
        "part_cnn", num_attributes=1, num_classes=2, regions=((0,),), attribute_regions=(0,), widths=(8, 8, 16, 16)
    )
    config = TrainConfig(model="part_cnn", lambda_parts=1.0, learning_rate=1e-2)
    optimizer = make_optimizer(model, config, 60)
    state = init_state(model, optimizer, model.init(jax.random.key(0), (SIDE, SIDE, 3)), jax.random.key(1))
    step = make_train_step(model, optimizer, config)
    for _ in range(60):
        state, metrics = step(state, batch)
    assert metrics["part_loss"] < 2 and metrics["attribute_loss"] < 0.1
    places = np.asarray(model.log_places(state.params, batch.inputs))[:, 0].reshape(64, -1).argmax(axis=1)
    found = np.stack([places % 8, places // 8], axis=1) * 4 + 2
    assert np.mean(np.abs(found - corners[:, ::-1] - 3).max(axis=1) <= 4) > 0.9


def test_a_batch_without_points_and_a_model_without_parts_are_named():
    model, params = built()
    config = TrainConfig(model="part_cnn", lambda_parts=0.1)
    optimizer = make_optimizer(model, config, 10)
    step = make_train_step(model, optimizer, config)
    batch = Batch(images(), jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32), jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"batch is a Batch; expected a PartBatch, with part points"):
        step(init_state(model, optimizer, params, jax.random.key(0)), batch)
    plain = sj.build_model("cnn", num_attributes=4, num_classes=3)
    with pytest.raises(ValueError, match=r"lambda_parts is 0.1, but model 'cnn' does not look for parts"):
        make_train_step(plain, make_optimizer(plain, config, 10), config)
    with pytest.raises(ValueError, match=r"log_places or places is None; expected both for lambda_parts=1"):
        sj.total_loss(
            sj.Head(jnp.ones((2, 2))), jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.zeros(1, int), lambda_parts=1.0
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (8, 8)}, "model 'part_cnn' has 4 widths, got 2"),
        ({"regions": ()}, r"regions is \(\); expected at least one"),
        ({"attribute_regions": (0, 0)}, "attribute_regions has 2 entries from 0 to 0; expected one for each of 4"),
        (
            {"attribute_regions": (0, 0, 2, -1)},
            "entries from -1 to 2; expected one for each of 4 attributes, from -1 to 1",
        ),
    ],
)
def test_bad_options_are_named(options, message):
    given = {"regions": REGIONS, "attribute_regions": READ_FROM} | options
    with pytest.raises(ValueError, match=message):
        sj.build_model("part_cnn", num_attributes=4, num_classes=3, **given)


def test_bad_points_are_named():
    with pytest.raises(ValueError, match=r"parts has shape \(2, 3\); expected \(b, p, 3\)"):
        sj.region_maps(jnp.zeros((2, 3)), ((0,),), height=2, width=2)
    with pytest.raises(ValueError, match=r"regions has \(4,\); expected positions from 0 to 3"):
        sj.region_maps(jnp.zeros((1, 4, 3)), ((4,),), height=2, width=2)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    from data_prep.cub200 import prepare
    from data_prep.synthetic_birds import generate
    from spectra_jax.data import open_dataset

    folder = tmp_path_factory.mktemp("birds")
    source = generate(folder / "source", num_classes=3, images_per_class=4, progress=False)
    return open_dataset(prepare(source, folder / "prepared", validation_fraction=0.0, progress=False))


def test_points_come_with_their_images_and_are_mirrored_with_them(birds):
    options = {"batch_size": 8, "image_size": 32, "num_epochs": 1}
    plain = next(birds.batches("train", parts=True, **options))
    assert type(next(birds.batches("train", **options))) is Batch
    count = birds.num_examples("train")
    example = birds.example("train", 0)
    height, width = example["image"].shape[:2]
    np.testing.assert_allclose(plain.parts[0, :, :2], example["parts"][:, :2] / [width, height], rtol=1e-6)
    assert plain.parts.min() >= 0 and plain.parts[..., :2].max() <= 1 and not plain.parts[count:].any()
    flipped = next(birds.batches("train", parts=True, flip=True, seed=0, **options))
    mirrored = [not np.array_equal(a, b) for a, b in zip(plain.inputs[:count], flipped.inputs[:count], strict=True)]
    assert 0 < sum(mirrored) < count
    for before, after, moved in zip(plain.parts, flipped.parts, mirrored, strict=False):
        expected = 1 - before[:, 0] if moved else before[:, 0]
        seen = before[:, 2] > 0
        np.testing.assert_allclose(after[seen, 0], expected[seen], rtol=1e-6)
        np.testing.assert_array_equal(after[:, 1:], before[:, 1:])


def test_the_words_say_where_an_attribute_is_read(birds):
    options = regions_of(birds.info)
    nape, belly = birds.info.part_names.index("nape"), birds.info.part_names.index("belly")
    chosen = options["attribute_regions"]
    read = lambda name: chosen[birds.info.find_attribute(name)]  # noqa: E731
    assert options["regions"][read("has_nape_color::purple")] == (nape,)
    assert belly in options["regions"][read("has_underparts_color::red")]
    assert read("has_size::small_(5_-_9_in)") == -1
    with pytest.raises(ValueError, match=r"model 'part_cnn' needs part points, but .* has none"):
        regions_of(birds.info.__class__(**{**vars(birds.info), "part_names": ()}))
