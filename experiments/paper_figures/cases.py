"""The figures of the paper, described by what they show."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One figure of the paper.

    Attributes:
        key: short name, for --figures and files.
        title: what the paper shows.
        section: of the paper.
        source: class of the image; None looks for the class and target that need the smallest change.
        target: class to reach; None takes the nearest one.
        attribute: name or 0-based id; None for a change of all attributes.
        direction: whether the attribute is to rise (+1) or fall (-1).
        few_pixels: whether the figure is about how few pixels have to change.
    """

    key: str
    title: str
    section: str
    source: str | None = None
    target: str | None = None
    attribute: str | None = None
    direction: int = 1
    few_pixels: bool = False


CASES = (
    Case("nape", "Brewer Blackbird to Laysan Albatross by a purple nape", "Section 5.2.1",
         "Brewer_Blackbird", "Laysan_Albatross", "185"),
    Case("breast", "Black-footed Albatross to Parakeet Auklet by a green breast", "Section 5.2.2",
         "Black_footed_Albatross", "Parakeet_Auklet", "113"),
    Case("crown", "Black-footed Albatross to Least Auklet by a buff crown", "Section 5.2.3",
         "Black_footed_Albatross", "Least_Auklet", "307"),
    Case("pixels", "Yellow-headed Blackbird changed by few pixels", "Section 5.2.4", "Yellow_headed_Blackbird",
         few_pixels=True),
    Case("underparts", "Black underparts lowered", "Section 5.2.5", attribute="50", direction=-1),
    Case("size", "A very small size", "Section 5.3.1", attribute="221"),
)  # fmt: skip
