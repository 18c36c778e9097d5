"""One process of the multi-process test: trains a few steps and writes what it got.

usage: multiprocess_worker.py OUT PORT NUM_PROCESSES PROCESS_ID
"""

import dataclasses
import sys

import jax
import numpy as np
from training_tools import CONFIG, EndlessBatches, examples, make_problem

from spectra_jax.checkpoint import Checkpoints
from spectra_jax.sharding import any_process, data_mesh, initialize_distributed, place_batch, replicate, replicated
from spectra_jax.training import Progress, fit, make_eval_step, make_train_step, predict


def main(out: str, port: str, num_processes: int, process_id: int) -> None:
    initialize_distributed(coordinator_address=f"127.0.0.1:{port}", num_processes=num_processes, process_id=process_id)
    assert jax.process_count() == num_processes and jax.device_count() == num_processes
    mesh = data_mesh()
    model, optimizer, state = make_problem()
    step = make_train_step(model, optimizer, CONFIG, sharding=replicated(mesh))
    checkpoints = Checkpoints(f"{out}.checkpoints")
    records: list[dict] = []

    def save(state, progress):
        checkpoints.save(progress.step, state, dataclasses.asdict(progress))

    def run(state, progress, should_stop):
        return fit(
            state,
            step,
            EndlessBatches(examples(64), 16, process=process_id, processes=num_processes),
            num_steps=8,
            steps_per_epoch=4,
            progress=progress,
            place=lambda batch: place_batch(batch, mesh),
            log=records.append,
            log_every=4,
            save=save,
            save_every=4,
            should_stop=should_stop,
            block=True,
        )

    # Only one process is asked to stop, after step 6: both must.
    progress = Progress()
    state, progress = run(
        replicate(state, mesh), progress, lambda: any_process(process_id == num_processes - 1 and progress.step == 6)
    )
    assert progress.step == 6
    restored = checkpoints.restore(replicate(make_problem()[2], mesh))
    assert restored is not None and restored.step == 6
    state, progress = run(restored.state, Progress(**restored.host), lambda: False)
    share = 16 // num_processes
    rows = [leaf[process_id * share : (process_id + 1) * share] for leaf in examples(16, seed=5)]
    predictions = predict(
        make_eval_step(model, sharding=replicated(mesh)),
        state.params,
        [type(examples(1))(*rows)],
        place=lambda batch: place_batch(batch, mesh),
    )
    checkpoints.close()
    np.savez(
        f"{out}.{process_id}.npz",
        *jax.tree.leaves(jax.device_get(state.params)),
        logits=predictions.logits,
        loss=np.array([record["loss"] for record in records]),
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
