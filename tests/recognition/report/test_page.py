from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from photos.photo_files import thumbnail
from recognition.calibration.decisions import decide_sets
from recognition.calibration.thresholds import Calibration, Group, Threshold
from recognition.enrolment.checks import check_set
from recognition.enrolment.limits import EnrolmentLimits
from recognition.enrolment.quality_feedback import quality_feedback
from recognition.model import FaceModel
from recognition.records import AggregatedSet, EmptySet, FaceChoice, Rejection
from recognition.report.page import ordered_samples, page, write_page
from recognition.report.summary import InferenceReport
from recognition.report.tables import (
    similarities,
)

Make = Callable[..., AggregatedSet]
D = 64
CALIBRATION = Calibration("1e-03", Group({"1e-03": Threshold(0.42)}))


def person(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=D) + 0.7 * rng.normal(size=(count, D))


def report_of(
    model: FaceModel, sets: Sequence[AggregatedSet], empty: Sequence[EmptySet] = ()
) -> InferenceReport:
    checks = [check_set(model, each, EnrolmentLimits()) for each in sets]
    matrix = similarities(sets)
    feedback = [quality_feedback(each, check) for each, check in zip(sets, checks, strict=True)]
    return InferenceReport(
        model, sets, empty, matrix, checks, feedback, decide_sets(CALIBRATION, sets, matrix)
    )


@pytest.fixture
def two(model: FaceModel, make_set: Make) -> list[AggregatedSet]:
    """A set with near-duplicates, an outlier, a poor face and a rejected file; and a set of two faces."""
    own = person(6)
    features = np.concatenate([own, own[:1] * 1.001, own[:1], person(1, seed=4)])
    rejected = [Rejection("<b>.jpg", "the file is empty.")]
    anna = make_set(model, features, [10, 11, 9, 10, 3, 10, 10, 10, 9], "anna & <co>", rejected)
    return [anna, make_set(model, person(2, seed=7), name="berta")]


def faces_of(text: str) -> list[dict[str, object]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return list(json.loads(found[1]))


def test_page_shows_each_face_with_its_details(model: FaceModel, two: list[AggregatedSet]) -> None:
    text = page(report_of(model, two, [EmptySet("nobody", Path("x"), [Rejection("a.jpg", "no face.")])]))
    shown = [int(number) for number in re.findall(r'data-face="(\d+)"', text)]
    assert sorted(shown) == list(range(11))
    data = faces_of(text)
    anna = two[0]
    assert anna.weights is not None
    for number, face in enumerate(data[:9]):
        assert base64.b64decode(str(face["image"])) == anna.faces[number].thumbnail
        facts = dict(face["facts"])  # type: ignore[call-overload]
        order = [place for place, pick in enumerate(anna.picks, 1) if pick == number]
        assert facts["Selected"] == (f"as number {order[0]}" if order else "no")
        assert facts["Norm (quality)"].startswith(f"{anna.norms[number]:.2f}")
        assert float(facts["Weight"].split(" %")[0].removeprefix("<")) == pytest.approx(
            100 * anna.weights[number], abs=0.5
        )
    assert re.findall(r'title="selected as number (\d)"', text)[:3] == ["1", "2", "3"]
    assert "3 near-duplicates" in text
    assert "nobody" in text
    assert "no face." in text


def test_names_cannot_inject_html(model: FaceModel, two: list[AggregatedSet]) -> None:
    evil = "</script><script>alert(1)</script>.jpg"
    faces = [replace(two[1].faces[0], name=evil), two[1].faces[1]]
    text = page(report_of(model, [two[0], replace(two[1], faces=faces)]))
    assert "<script>alert" not in text
    assert html.escape("anna & <co>") in text
    assert "<co>" not in text
    assert "<b>.jpg" not in text
    assert faces_of(text)[9]["name"] == evil


def test_page_groups_faces_by_identity(model: FaceModel, make_set: Make) -> None:
    groups = [person(count, seed) for seed, count in enumerate((2, 3, 1))]
    aggregated = make_set(model, np.concatenate(groups))
    faces = list(aggregated.faces)
    faces[0] = replace(faces[0], choice=FaceChoice(2, from_left=1, agrees=True))
    text = page(report_of(model, [replace(aggregated, faces=faces)]))
    first, second, none = (
        text.index(f"<h3>{title}") for title in ("Identity 1", "Identity 2", "None of them")
    )
    places = [text.index(f'data-face="{number}"') for number in range(6)]
    assert first < min(places[2:5])
    assert max(places[2:5]) < second < min(places[:2])
    assert max(places[:2]) < none < places[5]
    facts = [dict(face["facts"]) for face in faces_of(text)]  # type: ignore[call-overload]
    assert [each["Identity"] for each in facts] == ["2 of 2"] * 2 + ["1 of 2"] * 3 + ["none"]
    assert facts[0]["Several faces"].startswith("face 1 of 2 from the left")


def test_page_is_self_contained(model: FaceModel, two: list[AggregatedSet]) -> None:
    text = page(report_of(model, two))
    assert not re.search(r"https?:|src=\"(?!data:)|@import|url\(", text)


def test_faces_are_ordered_by_selection_then_weight(model: FaceModel, two: list[AggregatedSet]) -> None:
    anna = two[0]
    check = check_set(model, anna, EnrolmentLimits())
    units = ordered_samples(anna, check)
    assert sorted(face for unit in units for face in unit) == list(range(9))
    assert sorted(next(unit for unit in units if len(unit) > 1)) == [0, 6, 7]
    assert units[0][0] == anna.picks[0]
    assert anna.weights is not None
    rest = [unit[0] for unit in units if unit[0] not in anna.picks]
    assert [anna.weights[face] for face in rest] == sorted(
        (anna.weights[face] for face in rest), reverse=True
    )


def test_page_shows_quality_feedback(model: FaceModel, two: list[AggregatedSet]) -> None:
    text = page(report_of(model, two))
    anna, berta = (part.split("</ul>")[0] for part in text.split('<ul class="findings">')[1:3])
    assert "<li>1 of 9 faces may show a different person: 0008.jpg" in anna
    assert "0000.jpg, 0006.jpg, 0007.jpg" in anna
    assert any("0004.jpg" in each and "quality" in each for each in anna.split("<li>"))
    assert "different person" not in berta


def test_many_sets_show_the_most_similar_of_each(model: FaceModel, make_set: Make) -> None:
    sets = [make_set(model, person(1, seed=number), name=f"p{number}") for number in range(70)]
    report = report_of(model, sets)
    text = page(report)
    assert text.count("--heat:") == 70 * 5
    nearest = int(np.argsort(-report.matrix[0])[1])
    assert f'href="#set-{nearest}"' in text


# --------------------------------------------------------------------------- in a browser

PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const said = { faults: window.faults };
  const press = (key) =>
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const list = [...document.querySelector("[data-set]").querySelectorAll(".face")];
  said.stops = list.filter((each) => each.tabIndex === 0).length;
  list[0].focus();
  press("ArrowRight");
  said.second = list.indexOf(document.activeElement);
  document.activeElement.click();
  said.open = card.open;
  said.named = document.getElementById("card-name").textContent === faces[list[1].dataset.face].name;
  press("ArrowRight");
  said.turned = document.getElementById("card-name").textContent === faces[list[2].dataset.face].name;
  document.getElementById("close").click();
  setTimeout(() => {
    said.back = list.indexOf(document.activeElement);
    const images = [...document.querySelectorAll(".face img")];
    said.loaded = images.filter((each) => each.src && each.naturalWidth === 96).length;
    said.wide = document.documentElement.scrollWidth - innerWidth;
    document.body.dataset.said = JSON.stringify(said);
    parent.postMessage(said, "*");
  }, 200);
}, 500));
</script>
"""


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs Chromium, which is not installed: apt-get install chromium")
    return found


def browse(
    chromium: str, folder: Path, text: str, *flags: str, width: int | None = None
) -> dict[str, object]:
    """Results of PROBE in the page, optionally in a frame of `width` pixels."""
    head = "<head><script>window.faults = []; onerror = (text) => { faults.push(text); };</script>"
    probed = text.replace("<head>", head, 1).replace("</body>", f"{PROBE}</body>", 1)
    (folder / "probed.html").write_text(probed)
    page_file = folder / "probed.html"
    if width is not None:
        page_file = folder / "frame.html"
        page_file.write_text(
            f'<body><iframe src="probed.html" width="{width}" height="800"></iframe><script>'
            'addEventListener("message", (event) => {'
            "document.body.dataset.said = JSON.stringify(event.data); });"
            "</script></body>"
        )
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,900", *flags]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, page_file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'data-said="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return dict(json.loads(html.unescape(found[1])))


def test_page_works_by_keyboard(
    chromium: str, model: FaceModel, two: list[AggregatedSet], tmp_path: Path
) -> None:
    said = browse(chromium, tmp_path, page(report_of(model, two)))
    assert said["faults"] == []
    assert said["stops"] == 1
    assert said["second"] == 1
    assert said["open"] is True
    assert said["named"] is True
    assert said["turned"] is True
    assert said["back"] == 2
    assert said["loaded"] >= 9  # type: ignore[operator]


def test_page_fits_a_phone(
    chromium: str, model: FaceModel, two: list[AggregatedSet], make_set: Make, tmp_path: Path
) -> None:
    others = [
        make_set(model, person(1, seed=n), name=f"a_long_name_without_any_break_{n}" * 2) for n in range(12)
    ]
    said = browse(chromium, tmp_path, page(report_of(model, [*two, *others])), width=360)
    assert said["faults"] == []
    assert said["wide"] <= 0  # type: ignore[operator]


def print_page(chromium: str, folder: Path, text: str) -> bytes:
    """The page as a PDF."""
    (folder / "report.html").write_text(text)
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--no-pdf-header-footer", f"--print-to-pdf={folder / 'report.pdf'}"]
    subprocess.run(
        [*command, (folder / "report.html").as_uri()], capture_output=True, timeout=120, check=True
    )
    return (folder / "report.pdf").read_bytes()


def test_printed_page_has_all_faces_and_columns(
    chromium: str, model: FaceModel, make_set: Make, tmp_path: Path
) -> None:
    """22 sets with distinct images, so that the PDF has each; the matrix is wider than paper."""
    sets = [make_set(model, person(4, seed=number), name=f"set_{number}") for number in range(22)]
    colours = iter(np.random.default_rng(0).integers(0, 256, (88, 1, 1, 3), np.uint8))
    for each in sets:
        each.faces[:] = [
            replace(face, thumbnail=thumbnail(np.tile(next(colours), (112, 112, 1)))) for face in each.faces
        ]
    report = report_of(model, sets)
    pdf = print_page(chromium, tmp_path, page(report))
    assert len(re.findall(rb"/Subtype /Image\b", pdf)) == 88
    if (reader := shutil.which("pdftotext")) is None:
        pytest.skip("the columns need pdftotext, which is not installed: apt-get install poppler-utils")
    done = subprocess.run([reader, "-layout", tmp_path / "report.pdf", "-"], capture_output=True, check=True)
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    heads = [cell for line in lines if line and all(each.isdecimal() for each in line) for cell in line]
    assert [number for number in map(str, range(1, 23)) if number not in heads] == []
    for row, each in enumerate(sets):
        cells = [cell for line in lines if line[:2] == [str(row + 1), each.name] for cell in line[2:]]
        expected = [f"{round(float(value), 2) + 0.0:.2f}" for value in report.matrix[row]]
        assert cells == [*expected[:row], "1", *expected[row + 1 :]]


def test_three_thousand_faces_load(chromium: str, model: FaceModel, make_set: Make, tmp_path: Path) -> None:
    crowd = make_set(model, person(3000), np.linspace(5, 15, 3000))
    write_page(tmp_path / "report.html", report_of(model, [crowd]))
    text = (tmp_path / "report.html").read_text()
    assert len(faces_of(text)) == 3000
    said = browse(chromium, tmp_path, text)
    assert said["faults"] == []
    assert said["loaded"] == 3000


def test_page_of_three_faces(chromium: str, model: FaceModel, make_set: Make, tmp_path: Path) -> None:
    said = browse(chromium, tmp_path, page(report_of(model, [make_set(model, person(3))])))
    assert said["faults"] == []
    assert said["loaded"] == 3
