"""The projections that experiments.benchmarks.exactness judges, many pairs at a time."""

import jax

import spectra_jax as sj


@jax.jit
def project(head, samples, targets, margin):
    return jax.vmap(lambda e, j: sj.projection_perturbation(head, e, j, margin=margin))(samples, targets)


@jax.jit
def project_into_ranges(head, samples, targets, margin, lower, upper):
    def one(e, j, low, high):
        return sj.box_perturbation(head, e, j, lower=low, upper=high, margin=margin)

    return jax.vmap(one)(samples, targets, lower, upper)
