"""three.js for the page's viewer, from where it lies already: in the template that trimesh shows its scenes with."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from importlib import resources

_FILE, _MEMBER = "resources/templates/viewer.zip", "viewer.html.template"
# In the template's one script: the library under its licence, the controls, and after them what we do not use.
_START, _END = "<script>", "THREE.TrackballControls=TrackballControls;})();"


@cache
def three_js() -> str | None:
    """The script that defines `THREE` with `TrackballControls`; None where trimesh's form is not what we expect."""
    try:
        packed = resources.files("trimesh").joinpath(_FILE).read_bytes()
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            text = archive.read(_MEMBER).decode("utf-8")
    except (OSError, KeyError, zipfile.BadZipFile, UnicodeDecodeError):
        return None
    return sliced(text)


def sliced(template: str) -> str | None:
    """The script out of the template's text; None if it is not there as a whole."""
    _, found, rest = template.partition(_START)
    script, ends, _ = rest.partition(_END)
    whole = found and ends and "three.js authors" in script[:500].lower() and "</script" not in script.lower()
    return script + _END if whole else None
