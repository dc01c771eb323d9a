"""The report of one run says what its record says, in a file that needs nothing else."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from atbench.errors import DataError
from atbench.reporting import markdown, report
from atbench.reporting.document import Cell, Code, Document, Facts, Heading, Notice, Paragraph, Table
from tests.support.figures import rendered
from tests.support.outcomes import MakeRun


class Page(HTMLParser):
    """Collects what a page refers to, its text, and whether its tags close in order."""

    VOID = ("meta", "img", "br", "link", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def written(run_maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_maker(tmp_path_factory.mktemp("report") / "run", evaluated={"warnings": ("steps cannot reach the edge",)})
    with rendered():
        report.write_report(run)
    return run


def test_both_reports_say_what_the_numbers_rest_on(written: Path) -> None:
    for file in ("report.md", "report.html"):
        text = (written / file).read_text().replace("\\", "").replace("&#39;", "'")
        for words in (
            "Upper bound: PGD-50 only", "steps cannot reach the edge", "Zhang et al. 2019", "12,345",
            "L∞, ε = 0.2 (51/255)",
            "KL(f(x) ‖ f(x'))", "a" * 64, "b" * 64, "d" * 64, "2.15.0", "atbench train method=trades seed=0",
            "uniform start",
            "objective ce", "1 restart", "by=val.pgd", "held out: clean 92.0 %, PGD 56.0 %, n = 150", "abc1234", "2 KB",
        ):  # fmt: skip
            assert words in text, (file, words)


def test_the_page_is_whole_by_itself(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    assert page.open == []
    beside = [link for link in page.links if not link.startswith(("#", "data:image/png;base64,"))]
    assert all((written / link).exists() for link in beside) and "tables/attacks.csv" in beside
    assert len(page.ids) == len(set(page.ids))
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
    assert "@import" not in "".join(page.words)
    assert "http" not in "".join(page.words)


def test_config_text_is_shown_not_interpreted(written: Path) -> None:
    assert "| &lt;b&gt;" in (written / "report.html").read_text()
    assert "\\| &lt;b&gt;" in (written / "report.md").read_text()


def test_pictures_of_the_markdown_exist(written: Path) -> None:
    links = re.findall(r"\]\((pictures/.*?)\)", (written / "report.md").read_text())
    assert {"pictures/best.png", "pictures/steps.svg"} <= set(links)
    for link in links:
        begin = b"\x89PNG" if link.endswith("png") else b"<svg"
        assert (written / link).read_bytes().startswith(begin)


def test_a_training_leaves_the_files_for_a_paper_to_the_verb(make_run: MakeRun) -> None:
    """And no file of a figure that stands for earlier results."""
    run = make_run()
    for every_format in (False, True, False):
        report.write_report(run, every_format)
        page = Page((run / "report.html").read_text())
        linked = {link for link in page.links if link.startswith("pictures/") and link != "pictures/"}
        assert linked == {str(path.relative_to(run)) for path in (run / "pictures").iterdir()}
        assert {"pictures/steps.svg"} <= linked and ("pictures/steps.pdf" in linked) == every_format


@pytest.mark.usefixtures("drawn")
@pytest.mark.slow
def test_writing_again_changes_nothing(written: Path) -> None:
    before = {path: path.read_bytes() for path in (written / "report.html", *written.glob("pictures/*.png"))}
    report.write_report(written)
    assert before == {path: path.read_bytes() for path in before}
    assert not list(written.rglob(".*"))


def test_a_record_that_is_not_the_mean_of_its_masks_is_called_out(make_run) -> None:
    run = make_run()
    path = run / "evaluation" / "best.json"
    record = json.loads(path.read_text())
    record["steps"][-1]["accuracy"] += 0.05
    path.write_text(json.dumps(record))
    report.write_report(run)
    assert "accuracy: the record has 0.65, best.npz says 0.6" in (run / "report.md").read_text()


def test_a_report_without_curves_or_pictures_is_still_one(make_run) -> None:
    run = make_run(checkpoints=("last",))
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    (run / "evaluation" / "last.npz").unlink()
    report.write_report(run)
    assert "cannot be checked against per-example outcomes" in (run / "report.md").read_text()


def test_radii_over_epochs_are_drawn_of_a_method_that_has_them(make_run: MakeRun) -> None:
    run = make_run()
    report.write_report(run)
    assert "adapted" not in (run / "report.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = {"eps_mean": 0.1, "eps_std": 0.02}
    (run / "metrics.jsonl").write_text("".join(json.dumps({**row, "method": figures}) + "\n" for row in rows))
    report.write_report(run)
    assert "(pictures/adapted_eps_mean.svg)" in (run / "report.md").read_text(encoding="utf-8")


def test_a_half_written_last_row_is_no_row(make_run) -> None:
    run = make_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epo')
    report.write_report(run)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "status.json").unlink(), "no run"),
        (lambda run: [p.unlink() for p in run.glob("evaluation/*")], "no evaluation yet"),
        (lambda run: (run / "evaluation" / "best.json").write_text("{}"), "not an evaluation record"),
        (lambda run: (run / "evaluation" / "best.json").write_text('{"schema": 1}'), "schema 1.* run `atbench eval"),
        (lambda run: (run / "evaluation" / "best.npz").write_bytes(b"PK"), "cannot be read"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "not YAML"),
    ],
)
def test_refusals_name_the_file_and_the_reason(make_run, spoil, words: str) -> None:
    run = make_run()
    spoil(run)
    with pytest.raises(DataError, match=words) as refusal:
        report.report_runs([run], None, False)
    assert str(run) in str(refusal.value)


def test_one_run_prints_its_figures(make_run, capsys) -> None:
    run = make_run()
    assert report.report_runs([run], None, False) == 0
    out = capsys.readouterr().out
    assert "96.7 % [88.6, 99.1]" in out and "60.0 %" in out and "upper bound" in out and str(run / "report.html") in out


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=alert(1)>",
        "\\<b>",
        "a\r<b>",
        "a\u2028<b>",
        "```\n<b>\n```",
        "~~~",
        "[x](javascript:1)",
        "&lt;b&gt;",
    ],
)
def test_a_name_brings_no_markup_along(text: str) -> None:
    """In prose as entities; in a block of code inside a fence that the text cannot end."""
    blocks = (Heading(text), Paragraph(text), Notice(text), Facts(((text, text),)), Table((text,), ((Cell(text),),)))
    prose = markdown.render_markdown(Document(text, blocks))
    assert not set("<\r\u2028") & set(prose) and not re.search(r"(?<!\\)\]\(", prose) and "\n~~~" not in prose
    shown = unescape(re.sub(r"\\(.)", r"\1", prose.splitlines()[0]))
    assert shown == "# " + re.sub("[\r\u2028\n]", " ", text)
    opening, *_, closing = markdown.render_markdown(Document("x", (Code(text, ""),))).splitlines()[2:]
    assert opening == closing and set(opening) == {"`"} and opening not in text


def test_a_radius_of_nothing_is_reported(make_run: MakeRun) -> None:
    """Without a radius there is no attack, and a length of step is no share of it."""
    folder = make_run(eps=0.0)
    report.write_report(folder)
    assert "PGD-50" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_collapse_is_named_with_both_accuracies_and_drawn(make_run, drawn: None) -> None:
    run = make_run()
    rows = [
        {"event": "watch", "epoch": 1, "step": 100, "fgsm": 0.7, "pgd": 0.6, "highest": 0.6, "k": 10, "n": 128},
        {"event": "watch", "epoch": 2, "step": 200, "fgsm": 0.9, "pgd": 0.02, "highest": 0.6, "k": 10, "n": 128},
    ]
    report.write_report(run)
    assert "Watch for" not in (run / "report.md").read_text()
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in (rows[0], {**rows[1], "collapse": "warn"}))
    report.write_report(run)
    text = (run / "report.md").read_text().replace("\\", "")
    assert "Catastrophic overfitting at step 200 (epoch 2): FGSM 90.0 %, PGD-10 2.0 % (highest so far 60.0 %)" in text
    assert "Watch for catastrophic overfitting: PGD-10 and FGSM on the same 128 held-out" in text
    assert (run / "pictures" / "watch.png").is_file() and text.count("held-out examples; training went on") == 1
