"""One self-contained HTML report for every script: pictures, numbers with definitions, plots, tables, provenance."""

from spectra_jax.extras import require

require("experiments", "jinja2", "markupsafe", "matplotlib", "PIL")

from spectra_jax.reporting.figures import SERIES as SERIES  # noqa: E402
from spectra_jax.reporting.figures import new_figure as new_figure  # noqa: E402
from spectra_jax.reporting.figures import plot_style as plot_style  # noqa: E402
from spectra_jax.reporting.glossary import GLOSSARY as GLOSSARY  # noqa: E402
from spectra_jax.reporting.glossary import Definition as Definition  # noqa: E402
from spectra_jax.reporting.items import AttributeChange as AttributeChange  # noqa: E402
from spectra_jax.reporting.items import Column as Column  # noqa: E402
from spectra_jax.reporting.items import CounterfactualCard as CounterfactualCard  # noqa: E402
from spectra_jax.reporting.items import Estimate as Estimate  # noqa: E402
from spectra_jax.reporting.items import Example as Example  # noqa: E402
from spectra_jax.reporting.items import Metric as Metric  # noqa: E402
from spectra_jax.reporting.items import Opens as Opens  # noqa: E402
from spectra_jax.reporting.items import Picture as Picture  # noqa: E402
from spectra_jax.reporting.report import Report as Report  # noqa: E402
