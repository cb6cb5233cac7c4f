"""One static page over a whole model repository: versions side by side, linked to their reports."""

from html import escape

from serving.errors import PawprintError
from serving.layout import ANALYSIS
from serving.modelspec import Familiarity, Manifest
from serving.percent import percent
from serving.repository import Repository

PICTURES_A_VERSION = 8

_STYLE = """
:root { --ink:#1c2024; --soft:#5d6872; --line:#dfe4e8; --lead:#1f6f8b; --bad:#b3261e }
body { margin:0; font:16px/1.5 system-ui,sans-serif; color:var(--ink) }
main { max-width:1200px; margin:0 auto; padding:1.2rem 1rem 4rem }
h2 { margin:2rem 0 .3rem; border-top:1px solid var(--line); padding-top:1rem }
a { color:var(--lead) } .soft { color:var(--soft); font-size:.9rem } .bad { color:var(--bad) }
.wide { overflow-x:auto } table { border-collapse:collapse; width:100%; font-size:.9rem }
th,td { text-align:right; padding:.3rem .45rem; border-bottom:1px solid var(--line);
  white-space:nowrap }
th:first-child,td:first-child { text-align:left } thead th { color:var(--soft); font-weight:600 }
.pictures { display:flex; gap:.5rem; flex-wrap:wrap; margin:.6rem 0 }
.pictures figure { margin:0; width:112px } .pictures img { width:112px; border-radius:8px }
figcaption { font-size:.8rem; color:var(--soft); overflow-wrap:anywhere }
"""
_HEAD = (
    "version", "made", "backbone", "accuracy", "95 % interval", "ECE", "unfamiliar",
    "robust", "corrupted", "size", "one photo", "report",
)  # fmt: skip


def render_page(repository: Repository) -> str:
    """The page; its links and pictures are relative to the repository's root."""
    names = repository.names()
    sections = "\n".join(_model(repository, name) for name in names)
    empty = "<p>No models yet: <code>train --data FOLDER --name NAME</code> makes one.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Models</title><style>{_STYLE}</style></head><body><main>\n"
        f"<h1>Models</h1>\n{sections or empty}\n</main></body></html>\n"
    )


def _model(repository: Repository, name: str) -> str:
    title = f'<h2 id="{escape(name)}">{escape(name)}</h2>\n'
    try:
        versions, aliases, astray = repository.survey(name)
    except OSError as error:
        return f'{title}<p class="bad">{escape(str(error))}</p>'
    rows, pictures = [], ""
    for version in reversed(versions):
        named = " ".join(alias for alias, target in aliases.items() if target == version)
        number = f"{version} <b>{escape(named)}</b>" if named else str(version)
        try:
            manifest = repository.manifest(name, version)
            rows.append(_row(repository, manifest, number))
            pictures = pictures or _pictures(repository, name, version)
        except PawprintError as error:
            rows.append(
                f'<tr><td>{number}</td><td class="bad" colspan="{len(_HEAD) - 1}">'
                f"{escape(str(error))}</td></tr>"
            )
    head = "".join(f"<th>{cell}</th>" for cell in _HEAD)
    problems = "".join(f'<p class="bad">{escape(why)}</p>\n' for why in astray.values())
    return (
        f"{title}{problems}{pictures}"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _row(repository: Repository, manifest: Manifest, title: str) -> str:
    name, version = manifest.name, manifest.version
    robust = corrupted = report = ""
    findings = repository.findings(name, version)
    if findings is not None:
        robust = "<br>".join(
            f"{percent(point.accuracy)} at {255 * point.epsilon:.3g}/255"
            for point in findings.robustness.robust_accuracy
            if point.norm == "linf"
        )
        corrupted = percent(findings.robustness.corruption_accuracy)
        report = f'<a href="{name}/{version}/{ANALYSIS}/report.html">report</a>'
    familiarity = repository.familiarity(manifest)
    ways = ", seen both ways" if manifest.configuration.get("mirror") else ""
    rows = []
    for precision, variant in manifest.variants.items():
        metrics = variant.metrics
        first = precision == "fp32"
        cells = (
            title if first else f"&nbsp;&nbsp;{escape(precision)}",
            escape(manifest.created[:10]) if first else "",
            f"{escape(manifest.backbone)}{ways}" if first else "",
            percent(metrics.accuracy),
            f"{percent(metrics.accuracy_low)} to {percent(metrics.accuracy_high)}, "
            f"n = {metrics.photos}",
            f"{metrics.ece:.3f}",
            _unfamiliar(familiarity, precision),
            robust if first else "",
            corrupted if first else "",
            f"{manifest.files[variant.file].size / 1e6:.1f} MB",
            f"{variant.latency_ms:.1f} ms",
            report if first else "",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join(rows)


def _unfamiliar(familiarity: Familiarity | None, precision: str) -> str:
    """Share of the test photos; "" where the version can't tell."""
    if familiarity is None:
        return ""
    share = familiarity.unfamiliar.get(precision)
    told = "not measured" if share is None else percent(share)
    return (
        f'<span title="of the test photos: a familiarity of {familiarity.threshold:g} or less, '
        f'compared with {familiarity.photos:,} photos">{told}</span>'
    )


def _pictures(repository: Repository, name: str, version: int) -> str:
    """The ideal images of a version, if it was analysed: what it is surest of."""
    files = [
        file.removeprefix("ideal/")
        for file in repository.analysis_files(name, version)
        if file.startswith("ideal/") and file.endswith(".png")
    ]
    figures = "".join(
        f'<figure><img src="{name}/{version}/{ANALYSIS}/ideal/{escape(file)}" '
        f'alt="ideal {escape(file[4:-4])}" loading="lazy">'
        f"<figcaption>{escape(file[4:-4])}</figcaption></figure>"
        for file in files[:PICTURES_A_VERSION]
    )
    return f'<div class="pictures">{figures}</div>\n' if figures else ""
