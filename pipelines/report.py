"""The report of a run: one HTML file that shows what it came to, what it kept and why, and what the model sees."""

from __future__ import annotations

from typing import Any

from tables import InputError, Lake
from trainers.app import command


@command("report")
def main(cfg: Any) -> None:
    from rich.console import Console

    if not isinstance(cfg.crops, int) or cfg.crops < 1:
        raise InputError("crops", cfg.crops, "must be a whole number of crops a row, 1 or more")
    path = write_report(Lake(cfg.lake), cfg.category, str(cfg.run), int(cfg.crops))
    Console().print(path, soft_wrap=True)


def write_report(lake: Lake, category: str, run: str, crops: int = 6) -> str:
    """Write `<lake>/runs/<run>/report.html`, self-contained, whole or not at all; return where it is.

    What the lake lacks (a split, a round, masks, a model that was deleted) is said on the page and stops nothing.

    Args:
        category: used where the run's own config does not say.
        crops: how many crops a row shows in each round.

    Raises:
        InputError: there is no such run.
    """
    from pipelines import report_page as page
    from pipelines.report_rounds import rounds_html
    from pipelines.report_shapes import TURN_DEG, shapes_html
    from pipelines.report_sources import (
        TURNING,
        counted,
        crawl_html,
        find_template,
        lineage_html,
        picture_html,
        template_html,
        turning_style,
        turning_template,
    )
    from pipelines.report_summary import compared, headline, results
    from pipelines.run_record import open_run

    record = open_run(lake, run, category)
    counts, ends = counted(record)
    model, split = record.model_path(record.best), compared(record)
    template = find_template(record, model)
    body = (
        headline(record, counts, TURNING if template else ""),
        results(record),
        page.section("What the crawl gave", crawl_html(ends, counts), lead="What became of every web address."),
        page.section(
            "Kept and rejected", rounds_html(record, crops),
            lead="Every round ranks all animals and trains on the best. The crops stand at fixed places of that order: "
            "both ends, and both sides of the cut.",
        ),
        page.section(
            "Shapes over photos", _FADE, shapes_html(lake, record.category, model, split),
            lead=f"The model of round {record.best} on labelled photos of the {split} split. The instances stand "
            "at fixed places in the order of their errors (5, 15, 25&nbsp;%; 45, 50, 55&nbsp;%; 75, 85, "
            "95&nbsp;% from the best), so none "
            f"is picked by hand. The last picture turns the shape by {TURN_DEG:.0f}&deg;.",
        ),
        page.section("The template", template_html(template), picture_html(template)),
        page.section("Lineage", lineage_html(record)),
    )  # fmt: skip
    title = f"{record.category} {run}: wildshape report"
    path = f"runs/{run}/report.html"
    lake.files.write(path, page.page(title, "\n".join(body), turning_style(turning_template(template))).encode())
    return f"{lake.uri}/{path}"


_FADE = (
    '<div class="tools"><span><i></i> label</span><span><i class="o"></i> reprojected joints</span>'
    "<label>mesh over the photo "
    '<input type="range" min="0" max="1" step="0.01" value="0.85" aria-label="opacity of the mesh" '
    "oninput=\"document.documentElement.style.setProperty('--mesh',this.value)\"></label></div>"
)


if __name__ == "__main__":
    main()
