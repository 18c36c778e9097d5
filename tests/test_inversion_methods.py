"""The better ways of inverting: exact where that can be checked, constraints kept, cost following the work left."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.sharding import PartitionSpec
from test_inversion import ATTRIBUTES, CLASSES, IMAGES, METHODS, WEIGHTS, config, encoded, linear, problem, solved

import spectra_jax as sj
from spectra_jax.inversion.encoder import as_partial
from spectra_jax.inversion.rounding import first_rounding, write_on_device, write_stepwise
from spectra_jax.inversion.step import Sample
from spectra_jax.sharding import BATCH_AXIS, data_mesh


def lengths(images, originals):
    change = np.asarray(images) - np.asarray(originals)
    return np.linalg.norm(change.reshape(len(change), -1), axis=1)


@jax.jit
def shortest_changes(head, attributes, targets, margin):
    """The exact change of each row; one compiled program, where op by op would be three hundred."""
    solve = jax.vmap(lambda e, j: sj.projection_perturbation(head, e, j, margin=margin))
    return solve(attributes, targets)


def curved(kernel, images):
    """An encoder whose gradient changes along the way."""
    return jnp.tanh(2 * linear(kernel, images)) + 0.3 * linear(kernel, jnp.square(images))


@functools.cache
def curved_problem(dtype=np.float32):
    encode = functools.partial(curved, jnp.asarray(problem()[0].args[0], dtype))
    images, head = jnp.asarray(IMAGES, dtype), sj.Head(jnp.asarray(WEIGHTS, dtype))
    attributes = encode(images)
    order = np.argsort(np.asarray(sj.head_logits(head, attributes)), axis=1)
    targets = jnp.asarray([order[row, row % (CLASSES - 1)] for row in range(len(images))], jnp.int32)
    delta = shortest_changes(head, attributes, targets, dtype(0.5)).delta
    return encode, head, images, attributes + delta, targets


def twice(encode, head, *columns):
    """The same searches two times over."""
    return encode, head, *(jnp.concatenate([column] * 2) for column in columns)


@functools.cache
def found_by_adam():
    return sj.invert(*curved_problem(), config=config("adam", max_steps=300))


def test_nearest_is_the_projection_in_the_space_of_images_when_the_encoder_is_linear():
    with jax.enable_x64(True):
        encode, head, images, wanted, targets = problem(np.float64)
        kernel = encode.args[0]
        images = 0.25 + 0.5 * images  # away from 0 and 1, so that the half-spaces alone decide
        seen = sj.Head(head.weights @ kernel.T)  # the classifier as a function of the pixels
        exact = shortest_changes(seen, images.reshape(4, -1), targets, np.float64(0))
        result = sj.invert(encode, head, images, wanted, targets, config=config(sj.Nearest(refine_steps=30)))
    assert result.success.all()
    ratio = lengths(result.images, images) / np.asarray(exact.norm)
    assert np.all(ratio >= 1) and np.all(ratio < 1.01)  # the clearance is half a per cent of the missing lead


def test_leaving_a_class_takes_the_shortest_way_out_of_it_when_the_encoder_is_linear():
    with jax.enable_x64(True):
        encode, head, images, _, _ = problem(np.float64)
        images = 0.25 + 0.5 * images
        rows, flat = np.asarray(head.weights @ encode.args[0].T), np.asarray(images).reshape(len(images), -1)
        logits, labels = flat @ rows.T, (flat @ rows.T).argmax(axis=1)
        gaps = logits[np.arange(len(flat)), labels][:, None] - logits
        away = np.linalg.norm(rows[labels][:, None] - rows[None], axis=-1)
        exact = np.min(gaps / np.where(away > 0, away, 1) + np.where(away > 0, 0, np.inf), axis=1)
        attributes = encode(images)
        options = config(sj.Nearest(refine_steps=30), survive_steps=8)
        result = sj.invert(encode, head, images, attributes, jnp.asarray(labels), targeted=False, config=options)
        named = [np.asarray(sj.head_logits(head, encode(found))) for found in (result.images, result.images_8bit)]
    assert result.success.all() and result.success_8bit.all()
    assert all(np.all(found.argmax(axis=1) != labels) for found in named)
    ratio = lengths(result.images, images) / exact
    assert np.all(ratio >= 1 - 1e-9) and np.median(ratio) < 1.01 and ratio.max() < 1.5


def test_only_the_method_nearest_can_leave_a_class():
    encode, head, images, wanted, targets = problem()
    with pytest.raises(ValueError, match=r'targeted is False, but the method "adam" aims at attributes'):
        sj.invert(encode, head, images, wanted, targets, targeted=False, config=config("adam"))


def test_nearest_keeps_to_the_box_optimally():
    rng = np.random.default_rng(3)
    kernel, weights = rng.normal(size=(27, 4)), rng.normal(size=(3, 4))
    images = rng.choice([0.0, 1.0], size=(1, 3, 3, 3)) * 0.98 + 0.01 * rng.uniform(size=(1, 3, 3, 3))
    flat = images.ravel()
    rows = weights @ kernel.T
    target = int((rows @ flat).argmin())
    leads = rows[target] - np.delete(rows, target, axis=0)
    reference = scipy.optimize.minimize(
        lambda x: np.sum((x - flat) ** 2), flat, jac=lambda x: 2 * (x - flat), bounds=[(0, 1)] * 27, method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: leads @ x, "jac": lambda x: leads}, options={"ftol": 1e-12},
    )  # fmt: skip
    assert reference.success and ((reference.x < 1e-9) | (reference.x > 1 - 1e-9)).sum() > 3  # bounds do bind
    with jax.enable_x64(True):
        result = sj.invert(
            functools.partial(linear, jnp.asarray(kernel)), sj.Head(jnp.asarray(weights)), jnp.asarray(images),
            jnp.zeros((1, 4)), jnp.asarray([target]),
            config=config(sj.Nearest(refine_steps=40), ssim_weight=0.0),
        )  # fmt: skip
    assert result.success[0] and np.asarray(result.images).min() >= 0 and np.asarray(result.images).max() <= 1
    assert 1 - 1e-6 <= lengths(result.images, images)[0] / np.sqrt(reference.fun) < 1.02


def test_gauss_newton_realises_the_wanted_attributes_by_the_shortest_change():
    with jax.enable_x64(True):
        encode, head, images, _, targets = problem(np.float64)
        kernel, images = encode.args[0], 0.25 + 0.5 * images
        before = encode(images)
        delta = shortest_changes(head, before, targets, np.float64(0.3)).delta
        result = sj.invert(encode, head, images, before + delta, targets, config=config("gauss_newton", max_steps=5))
        shortest = (np.asarray(delta) @ np.linalg.pinv(kernel)).reshape(images.shape)
        cosine = sj.attribute_selectivity(result.realised, result.requested).cosine
    assert result.success.all() and np.all(result.num_steps == 1)
    np.testing.assert_allclose(result.images - images, shortest, atol=0.05 * np.abs(shortest).max())
    assert np.all(np.asarray(cosine) > 0.995)
    assert np.all(result.backward_passes == 2 * 7)


@pytest.mark.parametrize("method", ["gauss_newton", "nearest"])
def test_curved_encoders_are_followed_with_fewer_passes_than_adam(method):
    slow, fast = found_by_adam(), sj.invert(*curved_problem(), config=config(method))
    assert slow.success.all() and fast.success.all()
    assert np.median(fast.num_steps) < np.median(slow.num_steps)
    if method == "nearest":
        images = curved_problem()[2]
        assert np.median(lengths(fast.images, images) / lengths(slow.images, images)) < 0.9


def test_refining_shortens_the_change():
    found = [sj.invert(*curved_problem(), config=config(sj.Nearest(refine_steps=steps))) for steps in (0, 8)]
    assert all(each.success.all() for each in found)
    last, first = (lengths(each.images, curved_problem()[2]) for each in reversed(found))
    shorter = last / first
    assert np.all(shorter <= 1 + 1e-6) and shorter.min() < 0.99
    assert np.all(found[1].num_steps <= found[0].num_steps + 8)


def test_aiming_anew_repairs_a_stale_aim():
    encode, head, images, _wanted, targets = curved_problem()
    useless = encode(images)  # the attributes the images have already
    for method in ("adam", "gauss_newton"):
        stale = sj.invert(encode, head, images, useless, targets, config=config(method, max_steps=20))
        assert not stale.success.any()
    anew = sj.invert(encode, head, images, useless + 1e-3, targets, config=config(max_steps=300, reaim_every=1))
    assert anew.success.all()


@pytest.mark.parametrize("method", METHODS)
def test_only_the_region_changes(method):
    encode, head, images, wanted, targets = curved_problem()
    region = np.zeros(images.shape[:3], bool)
    region[:, 2:11, 3:12] = True
    region[1] = False
    result = sj.invert(encode, head, images, wanted, targets, config=config(method, max_steps=300), region=region)
    outside = np.broadcast_to(~region[..., None], images.shape)
    np.testing.assert_array_equal(np.asarray(result.images)[outside], np.asarray(images)[outside])
    np.testing.assert_array_equal(result.success, [True, False, True, True])
    assert result.reason[1] == sj.Status.STALLED
    assert np.all(lengths(result.images, images)[[0, 2, 3]] > 0)


def test_immutable_attributes_are_wanted_as_they_are():
    encode, head, images, wanted, targets = problem()
    mutable = np.arange(ATTRIBUTES) % 2 == 0
    before = np.asarray(encode(images))
    for method, reaim in (("adam", {}), ("gauss_newton", {"reaim_every": 2, "reaim_margin": 0.2})):
        options = config(method, max_steps=400, **reaim)
        result = sj.invert(encode, head, images, wanted, targets, mutable=mutable, config=options)
        assert result.success.all() or not reaim
        np.testing.assert_array_equal(np.asarray(result.requested)[:, ~mutable], 0)
        moved = np.abs(np.asarray(result.attributes) - before)
        assert moved[:, ~mutable].mean() < 0.2 * moved[:, mutable].mean()
        share = sj.attribute_selectivity(result.realised, result.requested).share
        np.testing.assert_allclose(share, moved[:, mutable].sum(axis=1) / moved.sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_size_and_the_order_decide_nothing(method):
    with jax.enable_x64(True):
        encode, head, images, wanted, targets = twice(*curved_problem(np.float64))
        choose = functools.partial(config, method, max_steps=25)
        together = sj.invert(encode, head, images, wanted, targets, config=choose())
        rows = np.arange(8)[::-1]
        apart = sj.invert(encode, head, images[rows], wanted[rows], targets[rows], config=choose(batch_size=3))
    assert together.images.dtype == jnp.float64 and together.loss.dtype == jnp.float64
    assert method == "gauss_newton" or len(set(np.asarray(together.num_steps).tolist())) > 1  # they do end apart
    np.testing.assert_array_equal(apart.num_steps, together.num_steps[rows])
    np.testing.assert_array_equal(apart.reason, together.reason[rows])
    np.testing.assert_allclose(apart.images, np.asarray(together.images)[rows], rtol=0, atol=1e-10)
    np.testing.assert_allclose(apart.loss, np.asarray(together.loss)[rows], rtol=1e-10)


def test_the_cost_follows_the_work_that_is_left():
    calls = []

    def counted(kernel, images):
        jax.debug.callback(lambda: calls.append(len(images)), ordered=False)
        return linear(kernel, images)

    encode, head, images, wanted, targets = problem()
    encode = functools.partial(counted, encode.args[0])
    copies = [jnp.concatenate([array] * 4) for array in (images, wanted, targets)]
    result = sj.invert(encode, head, *copies, config=config(batch_size=4))
    jax.effects_barrier()
    rows = sum(calls)
    needed = int(result.forward_passes.sum())
    in_lockstep = 16 * int(result.forward_passes.max())
    assert needed <= rows < min(needed + 4 * int(result.num_steps.max()), in_lockstep)
    steps = np.asarray(result.num_steps)
    np.testing.assert_array_equal(result.backward_passes, steps + 1)
    np.testing.assert_array_equal(result.forward_passes, steps + 1 + 3)  # before, after, rounded


def test_under_jit_the_loop_finds_the_same():
    with jax.enable_x64(True):
        encode, head, images, wanted, targets = curved_problem(np.float64)
        search = functools.partial(sj.invert, encode, head, config=config("nearest", batch_size=2, survive_steps=4))
        outside, inside = search(images, wanted, targets), jax.jit(search)(images, wanted, targets)
    assert_same_answers(outside, inside)
    assert outside.success_8bit.sum() > outside.survives_rounding.sum()


def assert_same_answers(one, other):
    for name in ("num_steps", "reason", "success_8bit", "survives_rounding", "forward_passes", "backward_passes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_allclose(one.images, other.images, atol=1e-9)
    np.testing.assert_allclose(one.images_8bit, other.images_8bit, atol=1e-9)


def on_every_device(search, encode, head, *columns):
    rows = PartitionSpec(BATCH_AXIS)
    return jax.shard_map(
        lambda head, *shares: search(encode, head, *shares),
        mesh=data_mesh(), in_specs=(PartitionSpec(), *[rows] * len(columns)), out_specs=rows,
    )  # fmt: skip


def test_every_device_finishes_its_own_rows():
    with jax.enable_x64(True):
        encode, head, *columns = twice(*curved_problem(np.float64))
        search = functools.partial(sj.invert, config=config("nearest", batch_size=2, survive_steps=2))
        spread = jax.jit(on_every_device(search, encode, head, *columns))(head, *columns)
        alone = search(encode, head, *columns)
    assert_same_answers(spread, alone)
    assert not alone.survives_rounding.all()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "adam", "shrink_steps": 3, "reaim_every": 2},
        {"method": "gradient_descent", "encoder_dtype": "bfloat16"},
        {"method": "gauss_newton", "reaim_every": 1},
    ],
)
def test_every_option_can_be_spread_over_devices(changes):
    encode, head, *columns = twice(*curved_problem())
    mutable = jnp.arange(ATTRIBUTES) > 0
    search = functools.partial(sj.invert, config=config(**changes), mutable=mutable)
    jax.jit(on_every_device(search, encode, head, *columns)).lower(head, *columns)


def test_settings_bound_to_the_encoder_stay_settings():
    def encoder(kernel, images, *, double, name, axis, scale=None):
        assert name == "kernel" and isinstance(axis, int) and scale is None
        return jnp.sum((linear(kernel, images) * (2.0 if double else 1.0))[..., None], axis=axis)

    encode, *arguments = problem()
    bound = functools.partial(encoder, encode.args[0], double=False, name="kernel", axis=2, scale=None)
    found = sj.invert(bound, *arguments, config=config())
    np.testing.assert_array_equal(found.num_steps, solved().num_steps)


def test_what_is_traced_besides_the_images_is_noticed():
    encode, head, images, wanted, targets = problem()
    region = jnp.ones(images.shape[:3], bool)
    search = functools.partial(sj.invert, head=head, images=images, target_attributes=wanted, targets=targets)
    jax.eval_shape(lambda region: search(encode, config=config(), region=region), region)
    jax.eval_shape(lambda kernel: search(lambda x: linear(kernel, x), config=config()), encode.args[0])


def test_infeasible_rows_cost_nothing_and_stay_in_their_places():
    encode, head, images, wanted, targets = problem()
    index = np.arange(16) % 4
    feasible = np.isin(np.arange(16), [1, 6, 11, 12])
    aims = jnp.where(jnp.asarray(feasible)[:, None], wanted[index], jnp.inf)
    aims = aims.at[0].set(wanted[0].at[3].set(jnp.nan))
    alone = solved()
    found = sj.invert(encode, head, images[index], aims, targets[index], config=config(batch_size=4))
    np.testing.assert_array_equal(found.success, feasible)
    np.testing.assert_array_equal(found.reason, np.where(feasible, sj.Status.SOLVED, sj.Status.INFEASIBLE))
    np.testing.assert_array_equal(found.num_steps[feasible], np.asarray(alone.num_steps)[index[feasible]])
    np.testing.assert_array_equal(found.images[feasible], np.asarray(alone.images)[index[feasible]])
    np.testing.assert_array_equal(found.images[~feasible], images[index[~feasible]])
    np.testing.assert_allclose(found.attributes[~feasible], encoded(images[index[~feasible]]), atol=1e-5)
    np.testing.assert_array_equal(np.isnan(found.loss), ~feasible)
    assert not found.backward_passes[~feasible].any() and not found.num_steps[~feasible].any()
    assert not found.survives_rounding[~feasible].any()


@pytest.mark.parametrize("finishing", ["shrink_steps", "survive_steps"])
def test_finishing_leaves_alone_what_did_not_change(finishing):
    encode, head, images, wanted, targets = problem()  # not on 256 levels
    targets = targets.at[0].set(jnp.argmax(sj.head_logits(head, encode(images[:1])), axis=-1)[0])  # there already
    region = np.zeros(images.shape[:3], bool)
    region[:, :, 3:] = True
    result = sj.invert(
        encode, head, images, wanted, targets, region=region, config=config("adam", max_steps=200, **{finishing: 6})
    )
    assert result.success.all() and result.num_steps[0] == 0 and np.isinf(sj.psnr(result.images, images)[0])
    np.testing.assert_array_equal(result.images[:, :, :3], images[:, :, :3])
    np.testing.assert_array_equal(result.images[0], images[0])
    plain = np.round(np.asarray(images) * 255) / 255
    np.testing.assert_allclose(result.images_8bit[:, :, :3], plain[:, :, :3], atol=1e-6)


def test_the_changes_of_the_attributes_are_those_of_the_images():
    encode, _, images, wanted, _ = problem()
    np.testing.assert_allclose(solved().requested, wanted - encode(images), atol=1e-6)
    np.testing.assert_allclose(solved().realised, encoded(solved().images) - encoded(IMAGES), atol=1e-5)


def test_a_change_below_half_a_level_is_carried_over_to_8_bits():
    rng = np.random.default_rng(0)
    levels = rng.integers(20, 230, size=(3, 12, 12, 3)) / 255
    encode = functools.partial(linear, jnp.asarray(rng.normal(size=(432, ATTRIBUTES)), jnp.float32))
    images = jnp.asarray(levels, jnp.float32)
    bias = -np.asarray(encode(images[:1]) @ WEIGHTS.T)[0]  # all classes nearly tie at the first image
    head = sj.Head(jnp.asarray(WEIGHTS, jnp.float32), jnp.asarray(bias - 0.02 * np.arange(CLASSES), jnp.float32))
    images = jnp.concatenate([images[:1]] * 3)
    targets = jnp.asarray([1, 2, 3])
    found = [
        sj.invert(
            encode, head, images, encode(images), targets,
            config=sj.InversionConfig(method="nearest", survive_steps=steps),
        )
        for steps in (0, 8)
    ]  # fmt: skip
    assert found[0].success.all() and not found[0].survives_rounding.all()
    assert found[1].success_8bit.all() and not found[0].success_8bit.all()
    np.testing.assert_array_equal(found[1].images, found[0].images)
    for result in found:
        grid = np.asarray(result.images_8bit) * 255
        np.testing.assert_allclose(grid, np.round(grid), atol=1e-4)
        named = np.argmax(np.asarray(sj.head_logits(head, encode(result.images_8bit))), axis=-1)
        np.testing.assert_array_equal(result.success_8bit, named == np.asarray(targets))
    tries = np.asarray(found[1].forward_passes) - np.asarray(
        found[0].forward_passes
    )  # only what had to be carried over
    np.testing.assert_array_equal(tries > 0, ~np.asarray(found[0].survives_rounding))
    assert np.all(tries <= 8)


def test_whole_levels_win_what_a_lower_threshold_does_not():
    encode, head, images, _, targets = curved_problem()
    images = jnp.round(images * 255) / 255
    region = jnp.broadcast_to(jnp.arange(images.shape[2]) > 2, images.shape[:3]).astype(images.dtype)[..., None]
    budgets = jnp.zeros(len(images), jnp.int32)
    sample = Sample(images, encode(images), targets, budgets, region)
    nearly = images + region * 0.3 / 255  # in no direction of use: the first image to try is as far away as the last
    missed = jnp.arange(len(images)) != 1
    arguments = (as_partial(encode), head, sample, nearly, images, missed)
    stepwise = write_stepwise(*arguments, tries=20, num_lanes=3)
    for result in (stepwise, write_on_device(*arguments, tries=20)):
        np.testing.assert_array_equal(result.images, stepwise.images)
        np.testing.assert_array_equal(result.tries, stepwise.tries)
        np.testing.assert_array_equal(result.success, missed)
    tries = np.asarray(stepwise.tries)
    assert tries[1] == 0 and tries.max() > 2 and np.all(tries[np.asarray(missed)] >= 1)
    named = np.argmax(np.asarray(sj.head_logits(head, encode(stepwise.images))), axis=-1)
    np.testing.assert_array_equal(named == np.asarray(targets), missed)
    grid = np.asarray(stepwise.images) * 255
    np.testing.assert_allclose(grid, np.round(grid), atol=1e-4)
    np.testing.assert_array_equal(stepwise.images[:, :, :3], images[:, :, :3])
    none = write_stepwise(*arguments, tries=1, num_lanes=3)
    np.testing.assert_array_equal(none.success, tries == 1)
    np.testing.assert_array_equal(none.images[tries != 1], images[tries != 1])


def rounded_anew(head_scale=1.0, change=0.0):
    """Whole levels for one problem: linear encoder, the images themselves as what is to be rounded."""
    rng = np.random.default_rng(0)
    kernel, weights = rng.normal(size=(432, 9)) / 20, rng.normal(size=(40, 9))
    images = jnp.asarray(rng.integers(20, 230, size=(6, 12, 12, 3)) / 255, jnp.float32)
    encode = functools.partial(linear, jnp.asarray(kernel, jnp.float32))
    head = sj.Head(jnp.asarray(head_scale * weights, jnp.float32))
    targets = jnp.argsort(sj.head_logits(head, encode(images)), axis=1)[:, -3]
    sample = Sample(images, encode(images), targets, jnp.zeros(6, jnp.int32), None)
    missed = jnp.ones(6, bool)
    return write_stepwise(as_partial(encode), head, sample, images + change, images, missed, tries=12, num_lanes=6)


def test_the_scale_of_the_head_does_not_decide_what_is_written():
    found = rounded_anew()
    assert found.success.all() and found.tries.max() > 2
    for scale in (2.0**10, 2.0**-14):
        other = rounded_anew(head_scale=scale)
        np.testing.assert_array_equal(other.tries, found.tries)
        np.testing.assert_array_equal(other.images, found.images)


def test_changes_above_one_level_are_rounded_to_the_nearest():
    original = jnp.full((1, 8, 8, 3), 100 / 255)
    change = jnp.zeros((1, 8, 8, 3)).at[0, 0].set(1.4).at[0, 1].set(-2.3).at[0, 2:].set(0.1)
    levels = jnp.round((first_rounding(original + change / 255, original) - original) * 255)
    np.testing.assert_array_equal(levels[0, :2, 0, 0], [1, -2])
    assert 0 <= levels[0, 2:].min() <= levels[0, 2:].max() <= 1


def test_bfloat16_searches_and_full_precision_judges():
    arguments = curved_problem()
    exact = sj.invert(*arguments, config=config("nearest"))
    coarse = sj.invert(*arguments, config=config("nearest", encoder_dtype="bfloat16"))
    assert coarse.images.dtype == jnp.float32 and coarse.success.all()
    logits = np.asarray(sj.head_logits(arguments[1], arguments[0](coarse.images)))
    np.testing.assert_array_equal(logits.argmax(axis=-1), arguments[4])
    assert np.abs(np.asarray(coarse.images) - np.asarray(exact.images)).max() > 0  # it did search otherwise


def test_what_bfloat16_promises_wrongly_is_searched_again():
    def brightness(scale, images):
        offset = 1.0 if images.dtype == jnp.bfloat16 else 0.0  # reaches the class at once, but only in bfloat16
        return jnp.mean(images, axis=(1, 2, 3))[:, None] * scale + jnp.asarray(offset, images.dtype)

    head = sj.Head(jnp.asarray([[0.0], [1.0]]), jnp.asarray([0.5, 0.0]))
    arguments = functools.partial(brightness, jnp.ones(())), head, jnp.full((1, 12, 12, 3), 0.2), jnp.asarray([[1.0]])
    search = functools.partial(sj.invert, *arguments, jnp.asarray([1]))
    exact = search(config=config("adam"))
    coarse = search(config=config("adam", encoder_dtype="bfloat16"))
    assert coarse.success[0] and coarse.num_steps[0] == exact.num_steps[0] > 3
    np.testing.assert_array_equal(coarse.images, exact.images)
    assert coarse.forward_passes[0] == exact.forward_passes[0] + 2  # the futile evaluation and its check


@pytest.mark.parametrize("method", METHODS)
def test_failures_are_told_apart(method):
    encode, head, images, wanted, targets = problem()
    broken = wanted.at[0].set(jnp.inf)
    blind, options = functools.partial(linear, jnp.zeros_like(encode.args[0])), config(method, ssim_weight=0.0)
    result = sj.invert(blind, head, images, broken, targets % 4 + 1, config=options)
    np.testing.assert_array_equal(result.reason, [sj.Status.INFEASIBLE] + [sj.Status.STALLED] * 3)
    np.testing.assert_array_equal(result.images, images)
    assert not result.success.any() and np.all(result.num_steps == 0)
    assert np.isnan(result.loss[0]) and np.isfinite(result.loss[1:]).all()
    short = sj.invert(encode, head, images, wanted, targets, config=options, max_steps=jnp.zeros(4, int))
    np.testing.assert_array_equal(short.reason, sj.Status.BUDGET)
    np.testing.assert_array_equal(short.images, images)
