"""The report of a run: one HTML file that shows what it came to, what it kept and why, and what the model sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from tables import InputError, Lake
from trainers.app import command

CROPS = 300  # about 2 MB of the page


@command("report")
def main(cfg: Any) -> None:
    from rich.console import Console

    if type(cfg.crops) is not int or cfg.crops < 1:
        raise InputError("crops", cfg.crops, "must be a whole number of animals, 1 or more")
    path = write_report(Lake(cfg.lake), cfg.category, str(cfg.run), int(cfg.crops))
    Console().print(path, soft_wrap=True)


def write_report(lake: Lake, category: str, run: str, crops: int = CROPS) -> str:
    """Write `<lake>/runs/<run>/report.html`, self-contained, whole or not at all; return where it is.

    What the lake lacks (a split, a round, masks, a model that was deleted) is said on the page and stops nothing.

    Args:
        category: used where the run's own config does not say.
        crops: animals of the selections whose crops the page holds.

    Raises:
        InputError: there is no such run.
    """
    from pipelines import report_page as page
    from pipelines.report_browser import browser_html
    from pipelines.report_rounds import rounds_html
    from pipelines.report_runs import runs_html
    from pipelines.report_shapes import shapes_html
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
    from pipelines.report_three import three_js
    from pipelines.run_record import open_run

    def said(make: Callable[..., str], *given: Any) -> str:
        """A section, or why it cannot be made: a lake that is damaged in one place has a report of the others."""
        try:
            return make(*given)
        except (InputError, OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
            return page.note(f"This part cannot be made ({type(error).__name__}: {str(error)[:300]}).")

    record = open_run(lake, run, category)
    counts, ends = counted(record)
    model, split = record.model_path(record.best), compared(record)
    template = find_template(record, model)
    shapes = said(shapes_html, lake, record.category, model, split)
    sections = (
        ("rounds", "AUC by round", "", said(results, record)),
        (
            "runs", "Runs of this lake", "Recipes are told by the settings in which they differ from this run; runs "
            "that differ in their seed alone are one recipe (mean &plusmn; standard deviation).",
            said(runs_html, record, split),
        ),
        ("crawl", "What the crawl gave", "What became of every web address.", crawl_html(ends, counts)),
        (
            "selections", "Kept and rejected", "Every round ranks all animals by its criterion and trains on the best.",
            said(rounds_html, record),
        ),
        (
            "browse", "Selection browser", "Animals that the rounds ranked, with the score that any criterion gives "
            "them. Choose one to see it closer.", said(browser_html, record, crops),
        ),
        (
            "shapes", "Shapes in 3D", f"The model of round {record.best} on labelled photos of the {split} split. The "
            "animals stand at fixed places in the order of their errors (5, 15, 25&nbsp;%; 45, 50, 55&nbsp;%; 75, 85, "
            "95&nbsp;% from the best), so none is picked by hand.", shapes,
        ),
        ("template", "The template", "", template_html(template) + picture_html(template)),
        ("lineage", "Lineage", "", said(lineage_html, record)),
    )  # fmt: skip
    jumps = "".join(f'<a href="#{name}">{title}</a>' for name, title, _, _ in sections)
    body = headline(record, counts, TURNING if template else "") + f'<nav aria-label="sections">{jumps}</nav>'
    body += "".join(page.section(title, html, lead=lead, name=name) for name, title, lead, html in sections)
    scripts = [page.asset("report_browser.js")]
    if "<canvas" in shapes:
        scripts.append(str(three_js()))
    scripts.append(page.asset("report_shapes.js"))
    style = page.asset("report.css") + turning_style(turning_template(template))
    path = f"runs/{run}/report.html"
    title = f"{record.category} {run}: wildshape report"
    lake.files.write(path, page.page(title, body, style, scripts).encode())
    return f"{lake.uri}/{path}"


if __name__ == "__main__":
    main()
