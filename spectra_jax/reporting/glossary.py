"""The terms of the reports, each with its definition and, if the paper has one, its equation."""

import zlib
from typing import Any, NamedTuple


class Definition(NamedTuple):
    """A glossary entry.

    Attributes:
        text: the definition in words.
        equation: section or equation of the SPECTRA paper, or "".
        formula: a short formula in plain text, or "".
    """

    text: str
    equation: str = ""
    formula: str = ""


GLOSSARY: dict[str, Definition] = {
    "Class accuracy": Definition("Share of images for which the class with the largest logit is the labelled one."),
    "Balanced attribute accuracy": Definition(
        "Mean of sensitivity and specificity of each attribute, averaged over attributes. A constant answer scores "
        "50 %; plain attribute accuracy would score a constant “no” above 90 %."
    ),
    "Attribute F1": Definition("Harmonic mean of precision and recall of each attribute, averaged over attributes."),
    "Attribute mAP": Definition(
        "Area under the precision-recall curve of each attribute, averaged over attributes with a positive example."
    ),
    "Counterfactual": Definition(
        "An image changed so that the classifier predicts the target class: first an attribute change δ is computed, "
        "then an image with those attributes is searched for, starting from the original.",
        "Section 2.6",
    ),
    "Just reached": Definition(
        "The classifier predicts the target, but its probability is less than 10 percentage points above that of the "
        "next class: searches stop as soon as the target wins."
    ),
    "Requested change": Definition("The change δ of an attribute that the solver requested.", "Section 2.5"),
    "Achieved change": Definition(
        "The change of the attribute that the encoder φ actually sees in the counterfactual image.",
        "Section 2.6",
        "φ(x′) − φ(x)",
    ),
    "Difference picture": Definition(
        "Counterfactual minus original, each colour channel multiplied by the stated factor and drawn around mid grey: "
        "grey means no change, brighter means more and darker means less of that colour. Values beyond the range are "
        "clipped. The largest change is a share of the full range from black to white."
    ),
    "Margin": Definition("By how much the target's logit must exceed every other one.", "", "κ ≥ 0"),
    "Boundary perturbation": Definition(
        "Smallest attribute change that makes the target beat the predicted class. A third class may still win.",
        "Section 2.5.2",
        "δ = (l_i − l_j + κ)(w_j − w_i) / ‖w_j − w_i‖²",
    ),
    "Single-attribute perturbation": Definition(
        "Smallest change of a single attribute that makes the target win, if one exists.", "Section 2.5.1, Eq. 1–4"
    ),
    "Pseudo-inverse perturbation": Definition(
        "The paper's global solution. It makes all logits equal: a tie of all classes, not a win of the target.",
        "Section 2.5.3",
        "δ = pinv(W_global) l_global",
    ),
    "Projection perturbation": Definition(
        "The provably smallest attribute change that makes the target win over every other class.",
        "",
        "min ‖δ‖ subject to e + δ in the target's decision region",
    ),
    "Attackability": Definition(
        "How small the attribute change to the nearest class boundary is, relative to the attributes: larger means "
        "easier to attack. It is defined in attribute space and says nothing about how easily the encoder is moved.",
        "Eq. 5",
        "a = max_k ‖e‖ / ‖δ_ik‖",
    ),
    "Model attackability": Definition(
        "Mean attackability over images, without an interval because none would be honest: a few images near a "
        "boundary dominate it. The population mean is infinite if the tail index is 1 or less; the index is estimated "
        "from the largest tenth of the values (Hill). Compare models by the median and the relative margin.",
        "Eq. 6",
    ),
    "Relative margin": Definition(
        "Reciprocal of the attackability: distance to the nearest class boundary relative to the attributes' norm.",
        "",
        "‖δ‖ / ‖e‖",
    ),
    "Attack success rate": Definition(
        "Share of attempted counterfactuals that the classifier assigns to their target, failures included.",
        "Section 4",
    ),
    "Success after 8 bits": Definition(
        "Share of attempted counterfactuals that still reach their target as images with 8 bits per channel: rounded "
        "or, if the search has survive_steps, its images_8bit."
    ),
    "PSNR": Definition(
        "Peak signal-to-noise ratio of the counterfactual against the original, for values in [0, 1]; infinite for "
        "identical images.",
        "Section 4",
        "10 log₁₀(1 / MSE)",
    ),
    "SSIM": Definition("Structural similarity (window 11, σ 1.5) of counterfactual and original; 1 means identical."),
    "Perturbation noise ratio": Definition(
        "Norm of the image change divided by the norm of the attribute change: the achieved change for “realised”, the "
        "requested change for “requested”.",
        "Section 4",
        "‖x′ − x‖₂ / ‖δ‖₂",
    ),
    "Pixels changed": Definition(
        "L0 distance as a share of all pixels: a pixel counts if any of its channels changed by at least one 8-bit "
        "level.",
        "",
        "L0 / (height · width)",
    ),
    "L1 distance": Definition(
        "Sum of the absolute changes of all pixels and channels, with values in [0, 1].", "", "‖x′ − x‖₁"
    ),
    "L2 distance": Definition(
        "Euclidean length of the change over all pixels and channels, with values in [0, 1].", "", "‖x′ − x‖₂"
    ),
    "L∞ distance": Definition(
        "Largest change of one channel of one pixel, as a share of the range from black to white.", "", "‖x′ − x‖∞"
    ),
    "High-frequency share": Definition(
        "Share of the change's energy (its squared L2 norm) in spatial frequencies above 1/8 cycle per pixel, by the "
        "Fourier transform: details finer than 8 pixels. White noise has 95 %."
    ),
    "Attribute selectivity": Definition(
        "Share of the achieved change of all attributes, each in units of its standard deviation over the test images, "
        "that lies in the requested ones. For a request that moves all attributes, only the 10 that move most count.",
        "",
        "Σ_requested |Δ_f| / σ_f over Σ_all |Δ_f| / σ_f",
    ),
    "Attribute cosine": Definition(
        "Cosine of the achieved and the requested attribute change, each attribute in units of its standard deviation; "
        "1 means exactly the requested direction."
    ),
    "Stability loss": Definition(
        "Training term that rewards large perturbations. The paper's form is unbounded below: growing attributes lower "
        "it without any gain in robustness.",
        "Section 3.1–3.2",
        "−‖δ‖²",
    ),
}


class Terms:
    """The definitions a report uses, each with an anchor to link to; names are matched without regard to case."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, Definition]] = {}

    def add(self, name: str, definition: Definition) -> None:
        """Adds or replaces an entry."""
        self._entries[name.casefold()] = (name, definition)

    def anchor(self, name: str, text: str = "") -> str:
        """The anchor of a name; `text`, else the standard glossary, defines a new one; "" if nobody defines it."""
        key = name.casefold()
        if text:
            self.add(name, Definition(text))
        elif key not in self._entries:
            if key not in _BY_LOWER_NAME:
                return ""
            self.add(name, _BY_LOWER_NAME[key])
        return _anchor(key)

    def listing(self) -> list[dict[str, Any]]:
        """All entries in alphabetical order, for the template."""
        return [{"id": _anchor(key), "name": name, "definition": d} for key, (name, d) in sorted(self._entries.items())]


def _anchor(key: str) -> str:
    # The bytes' checksum keeps names apart that differ only in signs, such as "‖δ‖" and "‖e‖".
    return f"define--{zlib.crc32(key.encode()):08x}"


_BY_LOWER_NAME = {name.casefold(): definition for name, definition in GLOSSARY.items()}
