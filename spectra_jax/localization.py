"""Whether the change of an image lies on the attribute's part, and whether that part causes it (Section 5.2.2)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.checks import (
    as_unit_scale,
    at_least_float32,
    check_attributes,
    check_finite_head,
    check_images,
    check_targets,
    is_concrete,
)
from spectra_jax.perturbations.geometry import head_logits
from spectra_jax.switches import public
from spectra_jax.types import Head


class EnergyLift(NamedTuple):
    """How much of a change lies in a region, measured against chance.

    Attributes:
        share: (b,) energy of the change inside the region over its energy everywhere, in [0, 1].
        area: (b,) pixels of the region over all pixels, in [0, 1].
        lift: (b,) share / area: 1 for a change scattered evenly, at most 1 / area.
    """

    share: Float[Array, " b"]
    area: Float[Array, " b"]
    lift: Float[Array, " b"]


class CausalSplit(NamedTuple):
    """What the change inside a region does alone, and what the change outside it does alone.

    Attributes:
        flips_inside: (b,) whether the change inside the region alone makes the classifier predict the target.
        flips_outside: (b,) whether the change outside the region alone does.
        share_inside: (b,) the attribute's change from the inside alone over its change from the whole.
        share_outside: (b,) the same for the outside alone. The two need not add up to 1: encoders are not linear.
    """

    flips_inside: Bool[Array, " b"]
    flips_outside: Bool[Array, " b"]
    share_inside: Float[Array, " b"]
    share_outside: Float[Array, " b"]


@public(rows="centres")
def part_discs(
    centres: Float[Array, "b p 2"],
    visible: Bool[Array, "b p"],
    radius: Float[Array, " b"],
    *,
    height: int,
    width: int,
) -> Bool[Array, "b h w"]:
    """The pixels within a radius of any visible part of each image.

    A pixel lies where its centre is: the first one at (0.5, 0.5). CUB locates parts by points; a disc is a guess at
    their extent. Where masks are known, as for drawn birds, use those instead.

    Args:
        centres: (b, p, 2) x, y of every part in pixels.
        visible: (b, p) parts to draw; an image without any gets an empty region.
        radius: (b,) of the discs in pixels.
        height, width: of the images.

    Returns:
        (b, h, w) booleans.

    Raises:
        ValueError: shapes disagree, or height or width is not positive.
    """
    shape = jnp.shape(centres)
    if len(shape) != 3 or shape[2] != 2 or jnp.shape(visible) != shape[:2] or jnp.shape(radius) != shape[:1]:
        raise ValueError(
            f"centres is {shape}, visible {jnp.shape(visible)} and radius {jnp.shape(radius)}; expected (b, p, 2), "
            "(b, p) and (b,)"
        )
    if height < 1 or width < 1:
        raise ValueError(f"height is {height} and width {width}; expected positive numbers of pixels")
    # Whole numbers and half precision do not hold the middle of every pixel.
    dtype = jnp.float64 if jnp.result_type(centres) == jnp.float64 else jnp.float32
    centres, radius = jnp.asarray(centres, dtype), jnp.asarray(radius, dtype)
    return draw_discs(centres, visible, radius, height=height, width=width)


def draw_discs(centres: Any, visible: Any, radius: Any, *, height: int, width: int) -> Any:
    """`part_discs` for arrays of JAX or NumPy, in the type of the centres, without checks."""
    xp = centres.__array_namespace__()
    columns = xp.arange(width, dtype=centres.dtype)[None, None, None, :] + 0.5
    rows = xp.arange(height, dtype=centres.dtype)[None, None, :, None] + 0.5
    x, y = centres[:, :, 0, None, None], centres[:, :, 1, None, None]
    near = xp.hypot(columns - x, rows - y) <= radius[:, None, None, None]
    return xp.any(near & visible[:, :, None, None], axis=1)


@public(rows="parts")
def region_maps(
    parts: Float[Array, "b p 3"], regions: Sequence[Sequence[int]], *, height: int, width: int
) -> Float[Array, "b r h w"]:
    """Where each region is on a coarse map: its visible part points, each spread over the four nearest cells.

    Args:
        parts: (b, p, 3) x and y of each part point, from 0 to 1 of the image's sides, and 1 where it is visible.
        regions: r sets of parts, as positions from 0 to p - 1.
        height, width: of the map.

    Returns:
        (b, r, h, w) weights that sum to 1 over a map, or to 0 where none of a region's parts is visible.

    Raises:
        ValueError: parts has another shape, or a region names a part that does not exist.
    """
    shape = jnp.shape(parts)
    if len(shape) != 3 or shape[2] != 3:
        raise ValueError(f"parts has shape {shape}; expected (b, p, 3)")
    members = np.zeros((len(regions), shape[1]), bool)
    for row, region in zip(members, regions, strict=True):
        if not all(0 <= part < shape[1] for part in region):
            raise ValueError(f"regions has {tuple(region)}; expected positions from 0 to {shape[1] - 1}")
        row[list(region)] = True
    weights = jnp.asarray(members, parts.dtype)[None] * parts[:, None, :, 2]
    weights = weights / jnp.maximum(jnp.sum(weights, axis=2, keepdims=True), 1)
    rows, columns = _nearest_places(parts[..., 1], height), _nearest_places(parts[..., 0], width)
    return jnp.einsum("brp,bph,bpw->brhw", weights, rows, columns, precision=jax.lax.Precision.HIGHEST)


def _nearest_places(position: Float[Array, "b p"], size: int) -> Float[Array, "b p {size}"]:
    """(b, p, size) weights of the two places whose centres are on either side of a position between 0 and 1."""
    centres = jnp.arange(size, dtype=position.dtype)[None, None, :]
    place = jnp.clip(position * size - 0.5, 0, size - 1)[:, :, None]
    return jnp.maximum(1 - jnp.abs(centres - place), 0)


@public(rows="images")
def energy_lift(
    images: Float[Array, "b h w k"], reference: Float[Array, "b h w k"], region: Bool[Array, "b h w"]
) -> EnergyLift:
    """Share of the energy of images - reference inside a region, over the region's share of the area.

    The energy of a pixel is the sum of its squared changes over the channels. A lift says where a change is, not that
    it matters there: see `causal_split`. Networks favour places such as heads whatever the request, so compare with the
    lift, at the same place, of a change that was requested for another part.

    Args:
        images: (b, h, w, channels) changed, in [0, 1].
        reference: same shape, the originals.
        region: (b, h, w) booleans, such as a part's mask or `part_discs`.

    Returns:
        EnergyLift; NaN share and lift where nothing changed, NaN lift where the region is empty.

    Raises:
        ValueError: shapes disagree, images not on the scale of [0, 1].
    """
    return lift_of(_energy(images, reference, region), region)


def lift_of(energy: Any, region: Any) -> EnergyLift:
    """`energy_lift` of any weights (b, h, w) of the pixels, at least 0, for arrays of JAX or NumPy."""
    xp = energy.__array_namespace__()
    inside, total = region.astype(energy.dtype), xp.sum(energy, axis=(1, 2))
    share = xp.sum(energy * inside, axis=(1, 2)) / xp.where(total > 0, total, xp.nan)
    area = xp.mean(inside, axis=(1, 2))
    return EnergyLift(share, area, share / xp.where(area > 0, area, xp.nan))


@public(rows="images")
def pointing_hit(
    images: Float[Array, "b h w k"], reference: Float[Array, "b h w k"], region: Bool[Array, "b h w"]
) -> Bool[Array, " b"]:
    """Whether the pixel that changed most lies in the region: the pointing game.

    By chance it does so with a frequency equal to the region's share of the area. Of several pixels that changed
    equally, the first one in reading order counts.

    Args:
        images: (b, h, w, channels) changed, in [0, 1].
        reference: same shape, the originals.
        region: (b, h, w) booleans.

    Returns:
        (b,) booleans; False where nothing changed.

    Raises:
        ValueError: shapes disagree, images not on the scale of [0, 1].
    """
    energy = _energy(images, reference, region).reshape(len(images), -1)
    place = jnp.argmax(energy, axis=-1)
    hit = jnp.take_along_axis(region.reshape(len(images), -1), place[:, None], axis=-1)[:, 0]
    return hit & (jnp.max(energy, axis=-1) > 0)


@public(rows="images")
def causal_split(
    encode_fn: Callable[[Float[Array, "b h w k"]], Float[Array, "b n"]],
    head: Head,
    images: Float[Array, "b h w k"],
    reference: Float[Array, "b h w k"],
    region: Bool[Array, "b h w"],
    targets: Int[Array, " b"],
    attributes: Int[Array, " b"],
) -> CausalSplit:
    """Applies only the change inside a region, then only the change outside it, and runs the model again.

    It takes four passes of the encoder. Unlike `energy_lift`, it says which pixels matter, not which ones moved.

    Args:
        encode_fn: images -> attributes (b, n).
        head: classifier on the attributes.
        images: (b, h, w, channels) changed, in [0, 1].
        reference: same shape, the originals.
        region: (b, h, w) booleans.
        targets: (b,) class that the change should reach.
        attributes: (b,) index f of the attribute whose change is split.

    Returns:
        CausalSplit; NaN shares where the whole change does not move the attribute.

    Raises:
        ValueError: shapes disagree (the encoder's with the head's included), images not in [0, 1], target
            or attribute out of range.
    """
    check_images(images)
    _energy(images, reference, region)  # for its checks
    check_targets(head, targets)
    check_finite_head(head)
    head = at_least_float32(head)
    batch = (len(images),)
    if jnp.shape(targets) != batch or jnp.shape(attributes) != batch:
        raise ValueError(
            f"targets is {jnp.shape(targets)} and attributes {jnp.shape(attributes)}; expected one of each for each of "
            f"{batch[0]} images"
        )
    chosen = region[..., None]
    before, after, inside, outside = (
        at_least_float32(encode_fn(pixels))
        for pixels in (
            reference,
            images,
            jnp.where(chosen, images, reference),
            jnp.where(chosen, reference, images),
        )
    )
    check_attributes(head, before, ndim=2)
    width = before.shape[1]
    if is_concrete(attributes) and np.any((np.asarray(attributes) < 0) | (np.asarray(attributes) >= width)):
        raise ValueError(f"attributes contains {np.asarray(attributes)}; expected indices from 0 to {width - 1}")
    # Small integer types cannot count to the number of classes or attributes.
    targets, attributes = jnp.asarray(targets, jnp.int32), jnp.asarray(attributes, jnp.int32)

    def named(encoded: Float[Array, "b n"]) -> Bool[Array, " b"]:
        return jnp.argmax(head_logits(head, encoded), axis=-1).astype(jnp.int32) == targets

    def moved(encoded: Float[Array, "b n"]) -> Float[Array, " b"]:
        return jnp.take_along_axis(encoded - before, attributes[:, None], axis=-1)[:, 0]

    whole = jnp.where(moved(after) != 0, moved(after), jnp.nan)
    return CausalSplit(named(inside), named(outside), moved(inside) / whole, moved(outside) / whole)


def _energy(
    images: Float[Array, "b h w k"], reference: Float[Array, "b h w k"], region: Bool[Array, "b h w"]
) -> Float[Array, "b h w"]:
    shape = jnp.shape(images)
    if len(shape) != 4 or jnp.shape(reference) != shape or jnp.shape(region) != shape[:3]:
        raise ValueError(
            f"images is {shape}, reference {jnp.shape(reference)} and region {jnp.shape(region)}; expected "
            "(b, h, w, channels) twice and (b, h, w)"
        )
    if jnp.result_type(region) != jnp.bool_:
        raise ValueError(f"region is of type {jnp.result_type(region)}; expected booleans, True inside")
    change = as_unit_scale("images", images) - as_unit_scale("reference", reference)
    return jnp.sum(jnp.square(change), axis=-1)
