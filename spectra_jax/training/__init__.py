"""Training an attribute-bottleneck classifier: configuration, the pure step, evaluation, and the loop.

The loss is that of the paper's Eq. 7, composed in `spectra_jax.losses.loss_terms`.
Nothing here touches files: where batches come from and where metrics and checkpoints go is handed to `fit`.
"""

from typing import TYPE_CHECKING

from spectra_jax.lazy import import_on_use

if TYPE_CHECKING:
    from spectra_jax.training._adversarial import attack_images as attack_images
    from spectra_jax.training._config import MAX_SEED as MAX_SEED
    from spectra_jax.training._config import PRESETS as PRESETS
    from spectra_jax.training._config import TrainConfig as TrainConfig
    from spectra_jax.training._evaluation import EvalStep as EvalStep
    from spectra_jax.training._evaluation import Predictions as Predictions
    from spectra_jax.training._evaluation import evaluate as evaluate
    from spectra_jax.training._evaluation import make_eval_step as make_eval_step
    from spectra_jax.training._evaluation import predict as predict
    from spectra_jax.training._loop import NonFiniteError as NonFiniteError
    from spectra_jax.training._loop import Progress as Progress
    from spectra_jax.training._loop import ResumableBatches as ResumableBatches
    from spectra_jax.training._loop import fit as fit
    from spectra_jax.training._step import DECODER as DECODER
    from spectra_jax.training._step import Metrics as Metrics
    from spectra_jax.training._step import TrainState as TrainState
    from spectra_jax.training._step import balanced_positive_weight as balanced_positive_weight
    from spectra_jax.training._step import check_adversarial as check_adversarial
    from spectra_jax.training._step import check_certified as check_certified
    from spectra_jax.training._step import check_parts as check_parts
    from spectra_jax.training._step import forward as forward
    from spectra_jax.training._step import init_state as init_state
    from spectra_jax.training._step import learning_rate_schedule as learning_rate_schedule
    from spectra_jax.training._step import make_optimizer as make_optimizer
    from spectra_jax.training._step import make_train_step as make_train_step
    from spectra_jax.training._step import trained_part as trained_part
    from spectra_jax.training._step import training_decoder as training_decoder
    from spectra_jax.training._step import with_loss_parameters as with_loss_parameters
else:
    import_on_use(__name__)
