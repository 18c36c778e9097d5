"""The smallest change of the image that reaches the class: projection onto the encoder's linearised decision region.

Seen from the image, the target's region is where the leads g_k(x') = l_j - l_k over all rivals k reach the margin.
Each step evaluates the most dangerous rival and its gradient, which gives a half-space, and projects onto the
intersection of the latest half-spaces, one per rival, within [0, 1]. Until the class is reached, it projects the
current image: the shortest way there. From then on it projects the original, the shortest change of all, and goes part
of the way to it; a larger part as long as that keeps shortening the change. Projecting the original onto a linearised
boundary is the idea of FAB (Croce and Hein 2020); here several boundaries act at once, as in `projection`.

To leave a class one lead is enough, that of its best rival over it, and only the latest half-space counts.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.inversion.config import InversionConfig, Method, check_not_negative
from spectra_jax.inversion.encoder import EncodeFn, lead_of, per_sample
from spectra_jax.inversion.step import Aim, Move, Sample
from spectra_jax.types import Head

_CUTS = 4
# Beyond the margin, as a share of the lead that was missing at first: rounding must not lose what was won.
_CLEARANCE = 0.005
# Networks give less than their gradient promises; asking for more saves steps. Share of the lead still missing.
_OVERSHOOT = 0.15
_FIRST_MIX, _MIX_UP, _MIX_DOWN, _LEAST_MIX = 0.5, 1.3, 0.5, 0.01
_SETTLED = 0.995  # of the best length: the linearised problem promises no more than that
_ACTIVE_SETS = np.array(list(itertools.product([False, True], repeat=_CUTS)))


class Search(NamedTuple):
    """What is remembered of each sample.

    Attributes:
        normals, offsets: (b, cuts, pixels), (b, cuts) half-spaces normal . (x' - x) >= offset.
        gram: (b, cuts, cuts) inner products of the normals.
        rivals: (b, cuts) whose they are; -1 for none.
        ages: (b, cuts) steps since they were computed.
        multipliers: (b, cuts) of the last projection.
        best, best_length: the nearest image so far that has the target, and how far it is; inf if there is none.
        mix: (b,) how far towards the projection of the original.
        clearance: (b,) aimed at beyond the margin.
        spent: (b,) updates since the target was first reached.
    """

    normals: Float[Array, "b cuts p"]
    offsets: Float[Array, "b cuts"]
    gram: Float[Array, "b cuts cuts"]
    rivals: Int[Array, "b cuts"]
    ages: Int[Array, "b cuts"]
    multipliers: Float[Array, "b cuts"]
    best: Float[Array, "b h w k"]
    best_length: Float[Array, " b"]
    mix: Float[Array, " b"]
    clearance: Float[Array, " b"]
    spent: Int[Array, " b"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Nearest(Method):
    """The smallest change of the image that reaches the class, by whatever attributes.

    Attributes:
        refine_steps: image updates to spend, at most, on shortening the change once the target is reached.
    """

    refine_steps: int = 8
    name: ClassVar[str] = "nearest"

    def __post_init__(self) -> None:
        check_not_negative("refine_steps", self.refine_steps)

    def init(self, images: Float[Array, "b h w k"]) -> Search:
        """No half-space is known."""
        batch, dtype = len(images), images.dtype
        return Search(
            normals=jnp.zeros((batch, _CUTS, images[0].size), dtype),
            offsets=jnp.zeros((batch, _CUTS), dtype),
            gram=jnp.zeros((batch, _CUTS, _CUTS), dtype),
            rivals=jnp.full((batch, _CUTS), -1, jnp.int32),
            ages=jnp.zeros((batch, _CUTS), jnp.int32),
            multipliers=jnp.zeros((batch, _CUTS), dtype),
            best=images,
            best_length=jnp.full(batch, jnp.inf, dtype),
            mix=jnp.full(batch, _FIRST_MIX, dtype),
            clearance=jnp.full(batch, -1, dtype),
            spent=jnp.zeros(batch, jnp.int32),
        )

    def step(
        self, encode: EncodeFn, head: Head, sample: Sample, aim: Aim, images: Float[Array, "b h w k"], state: Search,
        *, config: InversionConfig,
    ) -> Move:  # fmt: skip
        """One more half-space, and a projection onto all of them."""

        def objective(candidates):
            lead = lead_of(head, encode(candidates), sample.targets)
            return jnp.sum(lead.lead), lead

        (_, lead), gradient = jax.value_and_grad(objective, has_aux=True)(images)
        flat = (len(images), -1)
        origin, here, gradient = (array.reshape(flat) for array in (sample.images, images, sample.restrict(gradient)))
        change = here - origin
        length = jnp.linalg.norm(change, axis=-1)

        success = lead.by(config.margin)
        better = success & (length < state.best_length)
        found_before = jnp.isfinite(state.best_length)
        factor = jnp.select([better & found_before, success & ~better], [_MIX_UP, _MIX_DOWN], 1.0).astype(length.dtype)
        mix = jnp.clip(state.mix * factor, _LEAST_MIX, 1)
        best = jnp.where(per_sample(better, images), images, state.best)
        best_length = jnp.where(better, length, state.best_length)

        missing = config.margin - lead.lead
        clearance = jnp.where(state.clearance < 0, _CLEARANCE * jnp.maximum(missing, 0), state.clearance)
        offset = missing + clearance + jnp.sum(gradient * change, axis=-1)
        state = _with_cut(state, lead.rival, gradient, offset)
        finite = jnp.isfinite(lead.lead) & jnp.all(jnp.isfinite(state.gram), axis=(1, 2))
        extra = jnp.where(success, 0, _OVERSHOOT * jnp.maximum(missing + clearance, 0))
        nearest, multipliers = _project(
            state, state.offsets + extra[:, None], jnp.where(success[:, None], origin, here), origin
        )
        moved = (here + jnp.where(success, mix, 1)[:, None] * (nearest - here)).reshape(images.shape)

        found = jnp.isfinite(best_length)
        settled = jnp.linalg.norm(nearest - origin, axis=-1) >= _SETTLED * best_length
        finished = found & ((success & settled) | (state.spent >= self.refine_steps) | (best_length == 0))
        state = state._replace(
            multipliers=multipliers,
            best=best,
            best_length=best_length,
            mix=mix,
            clearance=clearance,
            spent=state.spent + found.astype(jnp.int32),
        )
        answer = jnp.where(per_sample(found, images), best, images)
        moved = jnp.where(per_sample(finite, images), moved, images)
        return Move(moved, state, sample.aims, finished, found, answer, finite)


def _with_cut(
    state: Search, rival: Int[Array, " b"], normal: Float[Array, "b p"], offset: Float[Array, " b"]
) -> Search:
    """Replaces the rival's last half-space by a new one; a new rival takes the place of the oldest inactive one."""
    same = state.rivals == rival[:, None]
    acts = (state.multipliers > 0) & (state.rivals >= 0)
    age = jnp.where(state.rivals < 0, jnp.iinfo(jnp.int32).max, jnp.where(acts, state.ages - 1_000_000, state.ages))
    slot = jnp.where(jnp.any(same, axis=-1), jnp.argmax(same, axis=-1), jnp.argmax(age, axis=-1))
    chosen = jnp.arange(_CUTS, dtype=slot.dtype)[None, :] == slot[:, None]
    normals = jnp.where(chosen[..., None], normal[:, None, :], state.normals)
    products = jnp.einsum("bip,bp->bi", normals, normal, precision=jax.lax.Precision.HIGHEST)
    gram = jnp.where(chosen[:, :, None], products[:, None, :], state.gram)
    return state._replace(
        normals=normals,
        gram=jnp.where(chosen[:, None, :], products[:, :, None], gram),
        offsets=jnp.where(chosen, offset[:, None], state.offsets),
        rivals=jnp.where(chosen, rival[:, None], state.rivals),
        ages=jnp.where(chosen, 0, state.ages + 1),
    )


def _project(
    state: Search, offsets: Float[Array, "b cuts"], point: Float[Array, "b p"], origin: Float[Array, "b p"]
) -> tuple[Float[Array, "b p"], Float[Array, "b cuts"]]:
    """The point of the half-spaces and of [0, 1] nearest to `point`, and its multipliers.

    It has the form clip(point + sum of multipliers * normals). Given which values are clipped, the multipliers solve a
    small non-negative problem. None is clipped in the first round; the second takes what the first one clipped as
    clipped, a step of a semi-smooth Newton method whose next steps come with the next images.
    """
    known = state.rivals >= 0

    def along_normals(pixels):
        return jnp.einsum("bip,bp->bi", state.normals, pixels, precision=jax.lax.Precision.HIGHEST)

    def displaced(multipliers):
        return point + sum(multipliers[:, cut, None] * state.normals[:, cut] for cut in range(_CUTS))

    raw = displaced(_non_negative(state.gram, offsets - along_normals(point - origin), known))
    inside = (raw >= 0) & (raw <= 1)
    base = jnp.where(inside, point, jnp.clip(raw, 0, 1)) - origin
    # One matrix-vector product per cut: on CPUs several times faster than one batched product of two matrices.
    lost = [along_normals(jnp.where(inside, 0, state.normals[:, cut])) for cut in range(_CUTS)]
    multipliers = _non_negative(state.gram - jnp.stack(lost, axis=-1), offsets - along_normals(base), known)
    return jnp.clip(displaced(multipliers), 0, 1), multipliers


def _non_negative(
    gram: Float[Array, "b cuts cuts"], wanted: Float[Array, "b cuts"], known: Bool[Array, "b cuts"]
) -> Float[Array, "b cuts"]:
    """argmin 1/2 m^T gram m - wanted^T m over m >= 0, by trying every active set; so few constraints allow it.

    Contradictory half-spaces have no answer; the active set that violates least is taken, and later steps correct.
    """
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(gram, axis1=-2, axis2=-1), 0))
    known = known & (size > 0)
    scale = jnp.where(known, size, 1)
    unit = jnp.where(known[:, :, None] & known[:, None, :], gram / (scale[:, :, None] * scale[:, None, :]), 0)
    wanted = jnp.where(known, wanted / scale, -jnp.inf)
    active = jnp.asarray(_ACTIVE_SETS)[None] & known[:, None, :]  # (b, sets, cuts)
    both = active[..., :, None] & active[..., None, :]
    eye = jnp.eye(_CUTS, dtype=gram.dtype)[None, None]
    # The ridge keeps nearly parallel half-spaces solvable; it is far below the error of the linearisation.
    system = jnp.where(both, unit[:, None], 0) + jnp.where(active[..., None], 1e-6, 1) * eye
    right = jnp.where(active, wanted[:, None, :], 0)
    solved = jnp.where(active, _solve_definite(system, right), 0)
    short = wanted[:, None, :] - jnp.einsum("bij,bsj->bsi", unit, solved, precision=jax.lax.Precision.HIGHEST)
    violation = jnp.maximum(jnp.max(short, axis=-1), jnp.max(-solved, axis=-1))
    best = jnp.argmin(violation, axis=-1)
    chosen = jnp.take_along_axis(solved, best[:, None, None], axis=1)[:, 0]
    return jnp.maximum(chosen, 0) / scale


def _solve_definite(matrices: Float[Array, "... k k"], right: Float[Array, "... k"]) -> Float[Array, "... k"]:
    """Solves small positive definite systems by elimination, unrolled: LAPACK may deadlock in a loop on the device."""
    for k in range(right.shape[-1]):
        row, value = matrices[..., k, :] / matrices[..., k, k, None], right[..., k] / matrices[..., k, k]
        others = matrices[..., :, k].at[..., k].set(0)
        matrices = (matrices - others[..., :, None] * row[..., None, :]).at[..., k, :].set(row)
        right = (right - others * value[..., None]).at[..., k].set(value)
    return right
