"""One self-contained HTML report for every script: pictures, numbers with definitions, plots, tables, provenance."""

from spectra_jax.reporting.figures import SERIES as SERIES
from spectra_jax.reporting.figures import new_figure as new_figure
from spectra_jax.reporting.figures import plot_style as plot_style
from spectra_jax.reporting.glossary import GLOSSARY as GLOSSARY
from spectra_jax.reporting.glossary import Definition as Definition
from spectra_jax.reporting.items import AttributeChange as AttributeChange
from spectra_jax.reporting.items import Column as Column
from spectra_jax.reporting.items import CounterfactualCard as CounterfactualCard
from spectra_jax.reporting.items import Estimate as Estimate
from spectra_jax.reporting.items import Example as Example
from spectra_jax.reporting.items import Metric as Metric
from spectra_jax.reporting.items import Opens as Opens
from spectra_jax.reporting.items import Picture as Picture
from spectra_jax.reporting.report import Report as Report
