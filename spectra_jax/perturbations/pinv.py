"""The paper's pseudoinverse perturbation (Section 2.5.3), and what it actually is."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spectra_jax.perturbations import formulas
from spectra_jax.perturbations.geometry import HIGHEST, head_logits, is_predicted, safe_sqrt
from spectra_jax.perturbations.problem import make_problem
from spectra_jax.switches import public
from spectra_jax.types import Head


def default_rtol(weights: Float[Array, "c n"]) -> float:
    """Relative cut-off for singular values: max(c, n) machine epsilons, NumPy's rule for matrix rank.

    jnp.linalg.pinv's own default is ten times larger, which in float32 at n = 312 discards directions
    that a head of condition 1e4 does use.
    """
    return max(weights.shape) * float(jnp.finfo(weights.dtype).eps)


@public()
def pinv_perturbation(
    head: Head,
    attributes: Float[Array, " n"],
    target: Int[Array, ""] | int,
    *,
    margin: float | Float[Array, ""] = 0.0,
    rtol: float | None = None,
) -> Float[Array, " n"]:
    """The paper's delta = pinv(W_global) l_global (Section 2.5.3).

    W_global stacks the constraint normals w_j - w_k of all rivals k, and l_global their offsets l_k - l_j + margin.
    Where these equations can all hold (no bias, or rank(C W) = c - 1 with the centring matrix C), the solution
    makes ALL logits equal (up to the margin): a c-way tie, not a win for j. Then, without a margin,

    - it is the same vector for every target, so the maximum over k in Eq. 5 has nothing to choose from;
    - with no bias and rank(C W) = n it is simply -e: the attackability is 1 and no gradient reaches W;
    - a small overshoot lands in the class that was least likely, not in the target;
    - its norm is an upper bound, often 3 to 40 times larger, on that of `projection_perturbation`, which is
      the one to use when the question is "what is the smallest change that makes this class j".

    Where they cannot (more classes than attributes, and a bias or a margin) it is the least-squares compromise:
    different for each target, not a tie, and no bound on anything. It is finite even for a target that cannot win.

    Under vmap over samples the singular value decomposition is shared; over targets it is done once per
    target. `all_pairs_norms(method="pinv")` needs a single one for everything.

    Args:
        head: weights (c, n), optional bias (c,).
        attributes: (n,) unnormalised attributes of one sample; use jax.vmap for more.
        target: class index j.
        margin: added to every offset, in logits.
        rtol: singular values below rtol times the largest count as zero; see `default_rtol`. The gradient
            is that of the pseudoinverse at constant rank, finite also at repeated singular values.

    Returns:
        (n,) in attribute units; inf for a target that a bias of -inf rules out. Other classes masked this way do not
        take part in the tie.

    Raises:
        ValueError: shapes do not match, target out of range, margin negative.
    """
    problem = make_problem(head, attributes, target, margin=margin)
    masked = _masked(problem.head)
    # A tie has no use for the exact differences of the problem's own offsets, which nothing here asks for.
    logits = head_logits(problem.head, problem.attributes)
    offsets = _finite_offsets(logits, problem.target, problem.margin, masked)
    delta = jnp.matmul(_target_pinv(problem.weights, problem.target, masked, rtol), offsets, precision=HIGHEST)
    return jnp.where(problem.is_masked, jnp.inf, delta)


def _masked(head: Head) -> Bool[Array, " c"]:
    """Classes that a bias of -inf rules out: they tie with nobody."""
    return jnp.zeros(head.weights.shape[0], bool) if head.bias is None else head.bias == -jnp.inf


def _finite_offsets(
    logits: Float[Array, " c"], target: Int[Array, ""], margin: Float[Array, ""], masked: Bool[Array, " c"]
) -> Float[Array, " c"]:
    """The offsets, 0 for what is no rival: the target itself, whose offset is -inf, and masked classes."""
    offsets = formulas.offsets(jnp.where(masked, 0, logits), target, margin)
    return jnp.where(masked | (offsets == -jnp.inf), 0, offsets)  # NaN stays NaN


def _target_pinv(
    weights: Float[Array, "c n"], target: Int[Array, ""], masked: Bool[Array, " c"], rtol: float | None
) -> Float[Array, "n c"]:
    # The rows of the target and of masked classes are zero: they add zero singular values and nothing else, and keep
    # shapes static.
    differences = jnp.where(masked[:, None], 0, weights[target][None, :] - weights)
    return jnp.linalg.pinv(differences, rtol=default_rtol(weights) if rtol is None else rtol)


def pinv_norms(
    head: Head, logits: Float[Array, "b c"], margin: Float[Array, ""], *, own_logits: bool
) -> Float[Array, "b c"]:
    """||pinv_perturbation|| for all samples and targets from one factorisation of the centred weights.

    Where the equations are consistent, delta_j = -pinv(C W) C (l - margin 1_j), so one pseudoinverse
    serves every pair. They are inconsistent only if rank(C W) < c - 1 and the right-hand side leaves its
    column space (a bias, a margin, or logits that are not W e): then the least-squares solutions differ
    and each target is factorised once, not each pair.

    Args:
        head: weights (c, n), optional bias (c,).
        logits: (b, c).
        margin: added to every offset, in logits.
        own_logits: whether `logits` are the head's own W e + b.

    Returns:
        (b, c); 0 for the predicted class, inf for classes that a bias of -inf rules out.
    """
    weights, masked = head.weights, _masked(head)
    num_classes = weights.shape[0]
    num_kept = jnp.sum(~masked, dtype=jnp.int32).astype(weights.dtype)

    def centre(values, axis):
        """Less the mean over the classes that take part; 0 where one does not."""
        out = jnp.expand_dims(masked, 1 - axis)
        mean = jnp.sum(jnp.where(out, 0, values), axis=axis, keepdims=True) / jnp.maximum(num_kept, 1)
        return jnp.where(out, 0, values - mean)

    rows = centre(weights, 0)
    shared = jnp.linalg.pinv(rows, rtol=default_rtol(weights))

    def from_shared(logits):
        tie = -jnp.matmul(centre(logits, 1), shared.T, precision=HIGHEST)
        lead = margin * shared.T
        cross = jnp.matmul(tie, lead.T, precision=HIGHEST)
        squares = jnp.sum(jnp.square(tie), axis=-1, keepdims=True) + 2 * cross
        return jnp.maximum(squares + jnp.sum(jnp.square(lead), axis=-1)[None, :], 0)

    def per_target(logits):
        def one_target(target):
            offsets = jax.vmap(_finite_offsets, in_axes=(0, None, None, None))(logits, target, margin, masked)
            deltas = jnp.matmul(offsets, _target_pinv(weights, target, masked, None).T, precision=HIGHEST)
            return jnp.sum(jnp.square(deltas), axis=-1)

        return jax.lax.map(one_target, jnp.arange(num_classes, dtype=jnp.int32)).T

    # rank(C W) = trace of its projector, read off the pseudoinverse that is at hand anyway.
    rank = jnp.sum(shared.T * rows)
    always_consistent = jnp.asarray(own_logits and head.bias is None) & (margin == 0)
    squares = jax.lax.cond(always_consistent | (rank > num_kept - 1.5), from_shared, per_target, logits)
    norms = jnp.where(masked[None, :], jnp.inf, safe_sqrt(squares))
    return jnp.where(is_predicted(logits), 0, norms)
