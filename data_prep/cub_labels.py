"""Which attributes are kept, and how an image's attribute labels are chosen.

Two kinds of labels exist. *Image* labels say what annotators saw on one photograph. *Class* labels give every image
of a class the same answer: the majority vote of its training images, or, where only class percentages are at hand,
whether at least half of the annotators saw the attribute. Certainty 0 means "class label"; 1 ("not visible") is kept
with the label as given, so that a loss may leave those out.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from data_prep.cub_files import CubFiles, names_digest
from data_prep.cub_tables import CubError

LabelSource = Literal["auto", "image", "class"]

# The 112 attributes of Koh et al. 2020 (Concept Bottleneck Models, arXiv:2007.04612), 0-based. Their rule: the majority
# label of each class over the training images, "not visible" answers left out; keep what at least 10 classes have.
# It needs the per-image labels and their split, so the published outcome is fixed here. Thresholding the class
# percentages of the official file at 50 gives 108 instead: 104 of these, not 99 134 198 213 225 242 292 309, but
# 104 165 173 182.
# fmt: off
CBM_ATTRIBUTE_IDS: tuple[int, ...] = (
    1, 4, 6, 7, 10, 14, 15, 20, 21, 23, 25, 29, 30, 35, 36, 38, 40, 44, 45, 50, 51, 53, 54, 56, 57, 59, 63, 64,
    69, 70, 72, 75, 80, 84, 90, 91, 93, 99, 101, 106, 110, 111, 116, 117, 119, 125, 126, 131, 132, 134, 145, 149,
    151, 152, 153, 157, 158, 163, 164, 168, 172, 178, 179, 181, 183, 187, 188, 193, 194, 196, 198, 202, 203, 208,
    209, 211, 212, 213, 218, 220, 221, 225, 235, 236, 238, 239, 240, 242, 243, 244, 249, 253, 254, 259, 260, 262,
    268, 274, 277, 283, 289, 292, 293, 294, 298, 299, 304, 305, 308, 309, 310, 311,
)
# fmt: on
MIN_CLASSES = 10

# SHA-256 of the official attribute and class names: both must match before the published list applies.
_OFFICIAL_NAMES = (
    "c796938559f4ddfa613047dbbcb2c17a830f92d65e78c6160e124aa0b357d961",
    "5c4ad6e85652ad6f7e622fa990eaf07b7420cd120b6af1e3112bb6328c81029b",
)


class AttributeLabels(NamedTuple):
    """The labels that are stored with the N images.

    Attributes:
        ids: (n,) 0-based positions of the kept attributes in attributes.txt, ascending.
        values: (N, n) 0 or 1.
        certainties: (N, n) 1 to 4, or 0 where the label comes from the class.
        source: "image" or "class".
    """

    ids: Int[np.ndarray, " n"]
    values: UInt8[np.ndarray, "N n"]
    certainties: UInt8[np.ndarray, "N n"]
    source: Literal["image", "class"]


def attribute_labels(
    files: CubFiles, *, attributes: int, source: LabelSource, is_train: Bool[np.ndarray, " N"]
) -> AttributeLabels:
    """Chooses the attributes and labels every image with them.

    Args:
        files: the annotations.
        attributes: 312 keeps every attribute; 112 keeps the concept-bottleneck selection.
        source: "image", "class" or "auto": image labels for all attributes where there are any, class labels otherwise
            and for the 112, as in the literature that uses them.
        is_train: the images whose labels may vote (the training split without validation).

    Raises:
        CubError: where image labels are asked for and absent, or the selection is empty.
    """
    if source == "auto":
        source = "image" if attributes == 312 and files.image_attributes is not None else "class"
    classes = class_labels(files, is_train)
    ids = np.arange(len(files.attribute_names)) if attributes == 312 else select_attributes(files, classes)
    if source == "class":
        values = classes[files.classes][:, ids].astype(np.uint8)
        return AttributeLabels(ids, values, np.zeros_like(values), "class")
    if files.image_attributes is None or files.image_certainties is None:
        raise CubError(
            f"{files.layout.root / 'attributes' / 'image_attribute_labels.txt'}: missing; expected it because image "
            "labels were asked for (use labels='class' or 'auto')"
        )
    return AttributeLabels(ids, files.image_attributes[:, ids], files.image_certainties[:, ids], "image")


def class_labels(files: CubFiles, is_train: Bool[np.ndarray, " N"]) -> Bool[np.ndarray, "C A"]:
    """The majority label of each class and attribute (Koh et al. 2020): not-visible "no" ignored, a tie is a "yes".

    Attributes of a class without any vote, and everything where there are no image labels, follow the class
    percentages: present from 50 on. Without those they are absent.
    """
    if files.image_attributes is None or files.image_certainties is None:
        assert files.class_percentages is not None  # `locate` wants one of the two
        return files.class_percentages >= 50
    yes = files.image_attributes[is_train] == 1
    no = ~yes & (files.image_certainties[is_train] != 1)
    balance = np.zeros((len(files.class_names), len(files.attribute_names)), np.int64)
    votes = np.zeros_like(balance)
    np.add.at(balance, files.classes[is_train], yes.astype(np.int64) - no)
    np.add.at(votes, files.classes[is_train], (yes | no).astype(np.int64))
    fallback = np.zeros(balance.shape, bool) if files.class_percentages is None else files.class_percentages >= 50
    return np.where(votes > 0, balance >= 0, fallback)


def select_attributes(files: CubFiles, classes: Bool[np.ndarray, "C A"]) -> Int[np.ndarray, " n"]:
    """The published 112 on CUB-200-2011; on any other data set what the same rule keeps there.

    Raises:
        CubError: where no attribute is present in at least 10 classes.
    """
    if is_official(files):
        return np.asarray(CBM_ATTRIBUTE_IDS)
    kept = np.flatnonzero(classes.sum(axis=0) >= MIN_CLASSES)
    if not len(kept):
        raise CubError(
            f"{files.layout.root}: attributes=112 keeps attributes that at least {MIN_CLASSES} classes have, and "
            f"here no attribute has that many ({len(files.class_names)} classes); use attributes=312 to keep all"
        )
    return kept


def is_official(files: CubFiles) -> bool:
    """Whether class and attribute names are those of CUB-200-2011."""
    return (names_digest(files.attribute_names), names_digest(files.class_names)) == _OFFICIAL_NAMES
