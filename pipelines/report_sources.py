"""Where a run's data came from and how its files hang together: the crawl, the template, the lineage."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

import numpy as np

from models.template import Template
from pipelines import report_page as page
from pipelines.report_mesh import part_colors, turntable, webp
from pipelines.run_record import RunRecord
from tables import Dataset, InputError

FRAMES = 30
# A colour for each end a URL can come to: what is usable in colour, duplicates pale, losses from orange to grey.
_ENDS = ("#2f7fbf", "#9cc5e3", "#d98c3f", "#b86b52", "#8f6f86", "#6f7f8f", "#a3a9b0", "#c9a24b", "#7d8b6a")
_WORDS = {
    "ok": "usable photo", "duplicate": "duplicate of another photo", "gone": "gone (404, 410)",
    "placeholder": "placeholder instead of a photo", "truncated": "cut short", "forbidden": "forbidden (401, 403)",
    "server_error": "server error", "timeout": "timed out",
    "not_image": "not a picture", "bomb": "too many pixels",
}  # fmt: skip


def counted(record: RunRecord) -> tuple[dict[str, int], Counter[str]]:
    """Counts for the headline (what is not known is absent), and the ends that URLs came to."""
    counts: dict[str, int] = {}
    ends: Counter[str] = Counter()
    photos = record.photos()
    if photos is not None:
        rows = photos.read(["status", "duplicate_of"])
        for status, copy in zip(rows["status"].to_pylist(), rows["duplicate_of"].to_pylist(), strict=True):
            ends["duplicate" if status == "ok" and copy else str(status)] += 1
        counts |= {"urls": sum(ends.values()), "photos": ends["ok"]}
    for number in reversed(record.numbers):
        instances = record.dataset("instances", number)
        if instances is not None:
            counts["animals"] = instances.read(["duplicate_of"])["duplicate_of"].null_count
            break
    labels = record.round(min(record.numbers, default=0)).get("items")
    used = record.round(max(record.numbers, default=0)).get("items")
    if labels is not None:
        counts["labels"] = int(labels)
        if used is not None and used > labels:
            counts["pseudo"] = int(used) - int(labels)
    return counts, ends


def crawl_html(ends: Counter[str], counts: dict[str, int]) -> str:
    """What became of the URLs, as one bar with its key."""
    total = sum(ends.values())
    if not total:
        return page.note("The lake has no crawl of this run.")
    order = [k for k in ("ok", "duplicate") if ends[k]]
    order += [k for k, _ in ends.most_common() if k not in order and ends[k]]
    colors = {k: _ENDS[min(i if k in ("ok", "duplicate") else max(i, 2), len(_ENDS) - 1)] for i, k in enumerate(order)}
    bar = "".join(
        f'<i style="flex:{ends[k]};background:{colors[k]}" title="{escape(k)}: {ends[k]:,}"></i>' for k in order
    )
    key = "".join(
        f'<li><i style="background:{colors[k]}"></i><b>{ends[k]:,}</b> {escape(_WORDS.get(k, k.replace("_", " ")))} '
        f"<span>{100 * ends[k] / total:.1f} %</span></li>"
        for k in order
    )
    tail = ""
    if counts.get("animals") is not None and counts.get("photos"):
        tail = (
            f"<p>In the {counts['photos']:,} photos the detector found {counts['animals']:,} animals, "
            f"{counts['animals'] / counts['photos']:.2f} a photo.</p>"
        )
    return (
        f'<div class="bar" role="img" aria-label="what became of the URLs">{bar}</div><ul class="key">{key}</ul>{tail}'
    )


def find_template(record: RunRecord, model: str | None) -> Template | None:
    """The template inside a round's checkpoint, or the file that the run names."""
    from models.checkpoint import load_checkpoint

    try:
        if model is not None:
            return load_checkpoint(model).template  # type: ignore[return-value]
        path = record.summary.get("template") or record.config.get("template")
        return Template.load(str(path)) if path else None
    except InputError:
        return None


def turning_template(template: Template | None) -> tuple[str, str]:
    """The template turning about its vertical, and its still for those who want no motion, as data URIs."""
    if template is None:
        return "", ""
    frames = turntable(template, FRAMES, 330)
    return webp(frames, 70), webp(frames[FRAMES // 8], 80)


def turning_style(turning: tuple[str, str]) -> str:
    """The animation as a CSS variable, so that it stands in the page once; still where the reader wants no motion."""
    moving, still = turning
    if not moving:
        return ""
    return f":root{{--turn:url({still})}}@media(prefers-reduced-motion:no-preference){{:root{{--turn:url({moving})}}}}"


TURNING = '<div class="turning" role="img" aria-label="the template turning"></div>'


def template_html(template: Template | None) -> str:
    """The template turning, its parts and its numbers."""
    if template is None:
        return page.note("The template is no longer where the run took it from.")
    parts = "".join(
        f'<li><i style="background:rgb({",".join(str(int(v)) for v in c)})"></i>{escape(n)}</li>'
        for n, c in zip(template.parts, part_colors(template), strict=True)
    )
    facts = (
        f"{len(template.vertices):,} vertices, {len(template.faces):,} faces, {len(template.parts)} parts, "
        f"{len(template.keypoints)} keypoints. Content <code>{template.digest}</code>."
    )
    names = f'<p class="note">Keypoints: {escape(", ".join(template.keypoint_names))}.</p>'
    return f'<div class="template">{TURNING}<div><ul class="legend">{parts}</ul><p>{facts}</p>{names}</div></div>'


def picture_html(template: Template | None) -> str:
    """The template's check picture, folded away."""
    if template is None:
        return ""
    from models.template_picture import template_picture

    picture = webp(np.ascontiguousarray(template_picture(template)), 60)
    shown = f'<img alt="template from six sides" src="{picture}">'
    return f"<details><summary>Keypoints, pivots and bent parts</summary>{shown}</details>"


def lineage_html(record: RunRecord) -> str:
    """Models, datasets, configuration and how to look further."""
    ids = {m["round"]: m.get("model_id", "") for m in record.metrics}
    head = ["round", "model", "instances", "pseudo-labels", "selections", "trained on"]
    rows = []
    for n in record.numbers:
        row = record.round(n)
        model = record.model_path(n)
        gone = "" if model else " <small>not in the lake</small>"
        cells = [str(n), f"<code>{escape(str(ids.get(n)))}</code>{gone}"]
        cells += [_code(row.get(t)) for t in ("instances", "pseudo_labels", "selections")]
        rows.append(([*cells, f"{row['items']:,}" if row.get("items") is not None else "&ndash;"], n == record.best))
    parts = [page.table(head, rows, left=(1, 2, 3, 4)) if rows else ""]
    files = [(f"round {n}", record.round(n).get("model")) for n in record.numbers]
    files += [*(record.summary.get("networks") or {}).items(), ("template", record.summary.get("template"))]
    photos = record.photos()
    files.append(("photos", photos.path if isinstance(photos, Dataset) else None))
    listed: list[Any] = [([escape(str(k)), _code(v, whole=True)], False) for k, v in files if v]
    if listed:
        parts.append(
            "<details><summary>Files</summary>" + page.table(["what", "where"], listed, left=(1,)) + "</details>"
        )
    if record.config_text:
        parts.append(f"<details><summary>Configuration</summary><pre>{escape(record.config_text)}</pre></details>")
    uri = record.mlflow.get("uri")
    if uri:
        experiment = str((record.config.get("mlflow") or {}).get("experiment", "wildshape"))
        names = f"<code>{escape(experiment)}</code> / <code>{escape(record.name)}</code>"
        where = f"<p>MLflow holds every stage as a nested run of {names}:</p>"
        parts.append(where + f"<pre>mlflow ui --backend-store-uri {escape(str(uri))}</pre>")
    parts.append(
        "<p>The numbers on this page: "
        f"<code>{escape(record.lake.uri)}/runs/{escape(record.name)}/metrics.json</code></p>"
    )
    return "".join(parts)


def _code(value: Any, whole: bool = False) -> str:
    if not value:
        return "&ndash;"
    return f"<code>{escape(str(value) if whole else str(value).rsplit('/', 1)[-1])}</code>"
