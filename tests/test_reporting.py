"""The report: structure, escaping, numbers in words, and atomic reproducible writing."""

import base64
import io
import itertools
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from spectra_jax.reporting import (
    AttributeChange,
    Column,
    CounterfactualCard,
    Estimate,
    Metric,
    Opens,
    Picture,
    Report,
    new_figure,
    plot_style,
)
from spectra_jax.reporting.formatting import csv_text, format_number, format_probability
from spectra_jax.reporting.images import data_uri, difference_picture, to_uint8

NASTY = """<script>alert("1")</script> & 'x' <b>has_size::small</b>"""
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Collects the elements of a page and checks that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]


def plain_figure() -> Figure:
    figure = Figure((3, 2))
    figure.add_subplot().imshow(np.eye(3))
    return figure


def full_report(*, name: str = "Black_footed_Albatross", size: int = 12) -> Report:
    """One of everything, with every awkward value the scripts can produce."""
    rng = np.random.default_rng(0)
    image = rng.random((size, size, 3)).astype(np.float32)
    changed = np.clip(image + 0.02, 0, 1)
    broken = changed.copy()
    broken[0, 0] = np.nan
    changes = [AttributeChange(f"{name}::{i}", i, -i / 2, i / 3) for i in range(9)]
    common: dict[str, Any] = {"source_class": name, "target_class": "Least_Auklet"}
    report = Report(f"Report on {name}", subtitle=name)
    report.headline(
        [
            Metric("Class accuracy", np.float32(0.912), "%", interval=(0.9, 0.92), note=name),
            Metric("Undefined", None, definition=name),
            Metric("PSNR", math.inf, "dB"),
            Metric("Not a number", float("nan")),
        ]
    )
    report.text(f"First {name}.\n\nSecond.", title=name, warning=True)
    report.counterfactuals(
        [
            CounterfactualCard(
                image,
                changed,
                success=True,
                steps=12,
                distance=1.5,
                attributes=changes,
                probabilities_before=[(name, 0.9), ("Least_Auklet", 0.1)],
                probabilities_after=[("Least_Auklet", 0.7), ("Third", None)],
                metrics=[Metric("PSNR", 34.0, "dB")],
                note=name,
                **common,
            ),
            CounterfactualCard(
                image,
                broken,
                success=False,
                reason=f"step limit {name}",
                distance=2.5,
                metrics=[Metric("PSNR", 41.0, "dB")],
                **common,
            ),
            CounterfactualCard(
                image,
                None,
                success=False,
                reason="infeasible",
                attributes=[AttributeChange(name, None, math.inf, None)],
                **common,
            ),
        ]
    )
    rows = [{"step": i, "split": s, "loss": 1 / (i + 1), name: math.nan} for i in range(4) for s in ("train", "test")]
    report.curves("Training", rows)
    report.table(
        "Methods",
        ["Method", Column("Norm", "px", definition=name), Column("Share", "%"), "Flag"],
        [
            ("b", 10.0, Estimate(0.5, 0.4, 0.6), True),
            ("a", 9.0, Estimate(0.25, 0.2, 0.3), False),
            (name, None, None, None),
            ("c", math.inf, Estimate(1.0, 0.9, 1.0), True),
            ("d", -2.5, Estimate(0.0, 0.0, 0.1), True),
        ],
    )
    report.listing(
        "Samples",
        [Column("sample"), Column("from", kind="class"), Column("margin", decimals=2)],
        [("a", name, 0.1), ("b", "002.B", 0.2), ("c", name, 0.9), ("d", name, math.nan)],
        thumbnails={0: image},
        shown=2,
        files={"pairs.csv": name},
    )
    report.histogram("Margins", [2, 1], [0.0, 0.5, 1.0], value_name="margin", counted="samples", opens=Opens("Samples"))
    report.matrix("Distances", [[np.nan, 2.0], [np.inf, 1.0]], [name, "B"], [name, "B"], opens=Opens("Samples"))
    with plot_style():
        figure = new_figure()
        figure.add_subplot(title="x").plot([1, 2])
    report.figure("Same", figure, alt=f"A line {name}")
    report.figure("Same", figure, alt="A line again")
    report.figure("Foreign", plain_figure(), alt="An identity matrix", caption=name)
    report.figure("Pixels", plain_figure(), alt="As PNG", format="png")
    report.gallery("Maps", [Picture(image[..., 0], name, f"Map of {name}")])
    report.define(f"Term {name}", name, equation="Eq. 5", formula="a < b")
    report.provenance(command=f"python {name}", seed=0, seconds=1.5, device="cpu", date="2020-01-01", data=name)
    return report


def check_structure(text: str) -> Page:
    """Rules every page has to keep."""
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids)), "ids repeat"
    for image in page.all("img"):
        assert image.get("alt"), image
    for tag, attrs in page.elements:
        for key, value in attrs.items():
            if key in ("src", "href", "xlink:href", "srcset", "action", "poster"):
                beside = key == "href" and "download" in attrs and re.fullmatch(r"[\w.]+", value)
                assert value and (value.startswith(("data:", "#")) or beside), (tag, key, value)
            if key == "href" and value.startswith("#"):
                assert value[1:] in ids, value
            if key in ("aria-labelledby", "aria-describedby"):
                assert value in ids, value
            for reference in re.findall(r"url\(([^)]*)\)", value or ""):
                assert reference.startswith("#") and reference[1:] in ids, reference
        if tag == "th":
            assert attrs.get("scope") in ("row", "col")
        if tag == "svg":
            assert attrs.get("role") == "img" and attrs.get("aria-label")
    assert not re.search(r"url\(\s*['\"]?\w+:", text) and "@import" not in text
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert len(page.all("main")) == len([e for e in page.all("script") if "type" not in e]) == 1
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in page.all("meta")}
    return page


def decode(uri: str) -> bytes:
    return base64.b64decode(uri.split(",", 1)[1])


@pytest.fixture(scope="module")
def text() -> str:
    return full_report().html()


def test_structure_of_a_full_page(text):
    page = check_structure(text)
    cards = [attrs for tag, attrs in page.elements if "card" in attrs.get("class", "").split()]
    assert len(cards) == 3 and not any("open" in attrs for attrs in cards)
    assert "infeasible" in page.text and "that stay present" in page.text
    assert "3 values were not finite and are drawn grey" in page.text


def test_text_is_escaped_everywhere():
    text = full_report(name=NASTY).html()
    page = check_structure(text)
    assert not page.all("b")
    assert page.text.count("alert(") > 15
    assert NASTY in page.text


def test_numbers_without_a_value_are_words(text):
    page = Page(text)
    for words in ("∞ (infinite)", "not defined", "91.2\u00a0%", "95 % interval 90.0\u00a0% to 92.0\u00a0%"):
        assert words in page.text
    assert not re.search(r"\b(nan|inf|None)\b", page.text)


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (None, {}, "not defined"),
        (float("nan"), {"unit": "dB"}, "not defined"),
        (math.inf, {}, "∞ (infinite)"),
        (-math.inf, {}, "−∞ (minus infinite)"),
        (np.float32(0.5), {"unit": "%"}, "50.0\u00a0%"),
        (65917, {}, "65,917"),
        (65917.3, {}, "65,917"),
        (-0.03125, {}, "−0.0312"),
        (1.5e-7, {}, "1.50×10⁻⁷"),
        (2.5e9, {}, "2.50×10⁹"),
        (0.0, {}, "0"),
        (3, {"signed": True}, "+3"),
        (1.0, {"decimals": 3, "unit": "s"}, "1.000\u00a0s"),
        (np.bool_(True), {}, "yes"),
        ("text", {}, "text"),
    ],
)
def test_format_number(value, options, expected):
    assert format_number(value, **options) == expected


def test_numbers_reject_arrays_and_keep_precision_in_csv():
    with pytest.raises(TypeError, match=r"shape \(2,\)"):
        format_number(np.zeros(2))
    assert csv_text(np.float64(0.1)) == "0.1" and csv_text(None) == "" and csv_text(math.inf) == "inf"


def test_csv_carries_the_table(text):
    [link] = [a for a in Page(text).all("a") if a.get("download") == "table-methods.csv"]
    lines = decode(link["href"]).decode().splitlines()
    assert lines[0] == "Method,Norm,Share,Share low,Share high,Flag"
    assert lines[1] == "b,10.0,0.5,0.4,0.6,True"
    assert lines[3] == "Black_footed_Albatross,,,,,"


def test_figures_are_downloadable_alone(text):
    links = {a["download"]: a.get("href", "") for a in Page(text).all("a") if "download" in a}
    svg = decode(links["figure-same.svg"]).decode()
    assert svg.startswith("<?xml") and "var(--" not in svg and "#1c2126" in svg
    assert Image.open(io.BytesIO(decode(links["figure-pixels.png"]))).format == "PNG"


def test_own_style_follows_the_page_and_foreign_figures_get_a_plate(text):
    page = Page(text)
    plots = [d["class"] for d in page.all("div") if "plot" in (d.get("class") or "").split()]
    assert sum("plate" in c for c in plots) == 2
    assert "var(--ink)" in text


def test_repeated_and_reserved_titles_keep_ids_apart():
    report = Report("x")
    image = np.zeros((4, 4, 3))
    cards = [CounterfactualCard(image, image, "a", "b", True)] * 3
    for title in ("Counterfactuals", "Counterfactuals", "Counterfactuals 1", "Glossary", "Main", "Viewer title", "…"):
        report.counterfactuals(cards, title=title)
    check_structure(report.html())


def test_empty_lists_and_empty_report():
    check_structure(Report("").html())
    report = Report("Empty")
    report.headline([])
    report.counterfactuals([])
    report.curves("Curves", [])
    report.table("Table", ["a", "b"], [])
    report.table("No columns", [], [])
    report.gallery("Gallery", [])
    report.text("")
    page = check_structure(report.html())
    for words in ("No numbers.", "No counterfactuals were attempted.", "Nothing to draw.", "No rows.", "No pictures."):
        assert words in page.text


def test_same_input_same_bytes(text, tmp_path):
    assert full_report().html() == text
    path = full_report().write(tmp_path / "new" / "report.html")
    assert path.read_bytes() == text.encode()
    assert len(text) < 500_000


def test_write_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    Report("Old").write(path)
    old = path.read_bytes()

    def fail(source, target):
        assert Path(source).exists() and path.read_bytes() == old
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Report("New").write(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["report.html"]


def test_difference_picture_is_signed_around_grey():
    before = np.full((4, 4, 3), 0.5, np.float32)
    after = before.copy()
    after[0, 0, 0] += 0.1
    after[1, 1, 1] -= 0.1
    result = difference_picture(before, after, amplification=2)
    assert result.pixels[0, 0, 0] == 179 and result.pixels[1, 1, 1] == 77
    assert (np.delete(result.pixels.reshape(-1), [0, 16]) == 128).all()
    assert result.largest == pytest.approx(0.1)
    assert difference_picture(before, before + 0.01).amplification == 50
    assert difference_picture(before, before).amplification == 1
    assert difference_picture(before, 1 - before * 0).amplification == 1


def test_images_are_exact_as_png_and_checked():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(decode(data_uri(pixels))))), pixels)
    assert np.array_equal(to_uint8(pixels.astype(np.float32) / 255).pixels, pixels)
    assert data_uri(np.zeros((224, 224, 3), np.uint8)).startswith("data:image/jpeg")
    assert to_uint8(np.array([[np.nan, np.inf, 1.0]])).num_not_finite == 2
    for bad in (np.full((4, 4, 3), 200.0), np.zeros((4, 4, 4)), np.zeros((0, 4, 3)), np.zeros((4, 4, 3), np.int64)):
        with pytest.raises(ValueError, match="image"):
            to_uint8(bad)
    with pytest.raises(ValueError, match="differ in shape"):
        difference_picture(np.zeros((4, 4, 3)), np.zeros((5, 4, 3)))
    with pytest.raises(ValueError, match="format"):
        data_uri(pixels, format="gif")


def test_misuse_is_refused():
    image = np.zeros((4, 4, 3))
    with pytest.raises(ValueError, match="reason"):
        CounterfactualCard(image, image, "a", "b", False)
    report = Report("x")
    with pytest.raises(ValueError, match="row 0 of table 'T' has 1 cells for 2"):
        report.table("T", ["a", "b"], [(1,)])
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        report.matrix("M", [[1.0]], ["a", "b"], ["a"])
    with pytest.raises(ValueError, match="accuracy"):
        report.curves("C", [{"step": 0, "loss": 1.0}], names=["accuracy"])


def card_text(card: CounterfactualCard) -> str:
    report = Report("x")
    report.counterfactuals([card])
    return " ".join(Page(report.html()).text.split()).replace("\u00a0", " ")


def test_a_card_says_how_clearly_its_target_won():
    image = np.zeros((4, 4, 3))

    def badge(target: float, rival: float) -> str:
        after = [("004.B_b", target), ("A", rival)]
        return card_text(CounterfactualCard(image, image, "A", "004.B_b", True, probabilities_after=after))

    assert "A →to B b ✓ just reached: 32.0 % beat 26.0 %" in badge(0.32, 0.26)
    assert "✓ reached" in badge(0.6, 0.2) and "1 reached." in badge(0.6, 0.2)


def test_attributes_are_probabilities_and_those_that_stay_are_folded():
    image = np.zeros((4, 4, 3))
    changes = [
        AttributeChange("has_crown_color::orange", -3.66, -0.5, -0.75),  # 2.5 % to 1.2 %
        AttributeChange("has_size::small", -0.5, 1.0, 1.0),
        AttributeChange("stays_absent", -4.0, 0.0, 0.01),
        AttributeChange("stays_present", 4.0, 0.0, -0.01),
        AttributeChange("half", 0.1, 0.0, -1.0),
    ]
    text = card_text(CounterfactualCard(image, image, "A", "B", True, attributes=changes))
    shown = text[text.index("How likely each attribute") : text.index("own units")]
    assert shown.index("size: small appears 37.8 % →to 62.2 %") < shown.index("crown color: orange 2.5 % →to 1.2 %")
    assert "half disappears 52.5 % →to 28.9 %" in shown
    assert "1 more that stay absent" in shown and "1 more that stay present" in shown
    assert "crown color: orange−3.660−0.500−0.750" in text[text.index("own units") :]
    # An answer in attributes alone: the change is the requested one.
    assert "appears 37.8 %" in card_text(
        CounterfactualCard(image, None, "A", "B", True, attributes=[AttributeChange("x", -0.5, 1.0)])
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.025, "2.5 %"),
        (1e-5, "< 0.1 %"),
        (0.99999, "> 99.9 %"),
        (0.0, "0.0 %"),
        (1.0, "100.0 %"),
        (None, "not defined"),
    ],
)
def test_format_probability(value, expected):
    assert format_probability(value).replace("\u00a0", " ") == expected


def test_histograms_and_links_are_checked():
    report = Report("x")
    for counts, edges in (([1, 2], [0.0, 1.0]), ([1], [1.0, 0.0]), ([[1]], [0.0, 1.0])):
        with pytest.raises(ValueError, match="increasing edges"):
            report.histogram("H", counts, edges, value_name="v", counted="images")
    report.headline([Metric("Class accuracy", 0.9, "%", opens=Opens("Nowhere"))])
    with pytest.raises(ValueError, match="no section 'Nowhere' to open"):
        report.html()


def test_more_than_six_numbers_are_folded():
    report = Report("x")
    report.headline([Metric(f"Number {i}", i) for i in range(7)])
    text = report.html()
    assert "3 more numbers" in text and text.index("Number 3") < text.index("3 more numbers") < text.index("Number 4")


@pytest.mark.parametrize("log", [False, True])
def test_matrix_of_any_content_draws(log):
    report = Report("x")
    for values in (np.full((2, 3), np.nan), np.zeros((2, 3)), np.arange(6.0).reshape(2, 3) * 1e4):
        report.matrix("M", values, ["a", "$b"], ["c", "d_$e$", "f"], log=log)
    check_structure(report.html())
