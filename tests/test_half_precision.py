"""Metrics of images in half precision are those of float32; other ranges than [0, 1] are refused with the remedy."""

import jax.numpy as jnp
import numpy as np
import pytest

import spectra_jax as sj

RANDOM = np.random.default_rng(0)
LEVELS = RANDOM.integers(0, 256, size=(2, 96, 96, 3))
OTHER = np.clip(LEVELS + RANDOM.integers(-40, 41, size=LEVELS.shape), 0, 255)
REGION = jnp.zeros((2, 96, 96), bool).at[:, 20:60, 10:50].set(True)
METRICS = {
    "psnr": sj.psnr,
    "ssim": sj.ssim,
    "image_distances": sj.image_distances,
    "frequency_split": sj.frequency_split,
    "energy_lift": lambda images, reference: sj.energy_lift(images, reference, REGION),
    "pointing_hit": lambda images, reference: sj.pointing_hit(images, reference, REGION),
}


def as_list(value):
    return [np.asarray(part) for part in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", METRICS)
def test_half_precision_gives_the_figures_of_float32(name, dtype):
    images, reference = (jnp.asarray(array / 255, dtype) for array in (LEVELS, OTHER))
    found = as_list(METRICS[name](images, reference))
    expected = as_list(METRICS[name](images.astype(jnp.float32), reference.astype(jnp.float32)))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype  # float32, counts and flags as ever
        assert np.isfinite(ours).all()
        if name == "image_distances" and ours.dtype == np.int32:
            continue  # levels of half precision are not those of float32: see the next test
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_one_level_counts_in_float16():
    changed = np.where(LEVELS < 255, LEVELS + 1, LEVELS)
    images, reference = (jnp.asarray(array / 255, jnp.float16) for array in (changed, LEVELS))
    expected = (changed != LEVELS).any(axis=-1).sum(axis=(1, 2))
    np.testing.assert_array_equal(sj.image_distances(images, reference).l0, expected)
    np.testing.assert_array_equal(sj.image_distances(reference, reference).l0, 0)


def test_a_float16_l1_beyond_its_range_is_finite():
    white, black = jnp.ones((1, 224, 224, 3), jnp.float16), jnp.zeros((1, 224, 224, 3), jnp.float16)
    assert float(sj.image_distances(white, black).l1[0]) == 224 * 224 * 3
    assert float(sj.psnr(white * 0.999, white)[0]) == pytest.approx(60.0, abs=0.3)  # its square underflows in float16


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_vectors_in_half_precision(dtype):
    realised, requested = (jnp.asarray(RANDOM.normal(size=(3, 300)) * 200, dtype) for _ in range(2))
    full = [array.astype(jnp.float32) for array in (realised, requested)]
    for found, expected in (
        (sj.attribute_selectivity(realised, requested), sj.attribute_selectivity(*full)),
        ((sj.perturbation_noise_ratio(realised, requested),), (sj.perturbation_noise_ratio(*full),)),
        (
            sj.class_change(realised, requested, jnp.asarray([0, 1, 2])),
            sj.class_change(*full, jnp.asarray([0, 1, 2])),
        ),
    ):
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_activation_map_of_half_precision_is_in_float32():
    matrix = jnp.asarray(RANDOM.normal(size=(12 * 12 * 3, 5)), jnp.bfloat16)
    images = jnp.asarray(LEVELS[:, :12, :12] / 255, jnp.bfloat16)
    found = sj.activation_map(lambda images: images.reshape(2, -1) @ matrix, images, 3, top_k=None)
    expected = np.abs(np.asarray(matrix[:, 3], np.float32)).reshape(12, 12, 3).max(axis=-1)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("name", METRICS)
def test_other_ranges_are_refused_with_the_remedy(name):
    unit = jnp.asarray(LEVELS / 255, jnp.float32)
    mean, deviation = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    for images, remedy in (
        (unit * 2 - 1, r"rescale \(x \+ 1\) / 2"),
        ((unit - mean[None, None, None]) / deviation[None, None, None], "undo the standardisation"),
        (unit * 255, "divide 8-bit values by 255"),
        (np.asarray(unit) * 2 - 1, r"rescale \(x \+ 1\) / 2"),
        ((unit * 2 - 1).astype(jnp.float16), r"rescale \(x \+ 1\) / 2"),
    ):
        with pytest.raises(ValueError, match=f"^images .*{remedy}"):
            METRICS[name](images, unit.astype(images.dtype))
        with pytest.raises(ValueError, match=f"^reference .*{remedy}"):
            METRICS[name](unit.astype(images.dtype), images)


def test_images_to_search_in_say_the_remedy_too():
    unit = jnp.asarray(LEVELS[:, :12, :12] / 255, jnp.float32)
    with pytest.raises(ValueError, match=r"images spans .*rescale \(x \+ 1\) / 2"):
        sj.activation_map(lambda images: images.reshape(2, -1), unit * 2 - 1, 0)
