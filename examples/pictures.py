"""Draws the picture of the README from an analysed version: classified, turned, dreamt of.

python examples/pictures.py models/cartoon/1 data/cartoon docs/images/demo.webp
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from serving.modelspec import Manifest
from serving.preprocess import preprocess
from trainer.analysis.pictures import captioned
from trainer.onnx_runner import OnnxRunner

SIDE = 224
COLUMNS, TRIPTYCHS = 6, 4


def main(version: Path, data: Path, out: Path) -> None:
    manifest = Manifest.from_json((version / "manifest.json").read_bytes())
    split = json.loads((version / "split.json").read_text())
    files = [f for pair in zip(*split["test"].values(), strict=False) for f in pair][:COLUMNS]
    pictures = np.stack(
        [preprocess((data / f).read_bytes(), manifest.preprocessing) for f in files]
    )
    scores = OnnxRunner(version / "model.onnx").run(pictures, len(pictures))[0]
    words = [f"{manifest.labels[int(s.argmax())]} {100 * s.max():.1f} %" for s in scores]
    large = [np.asarray(Image.open(data / f).resize((SIDE, SIDE))) for f in files]
    rows = [captioned(large, words, side=SIDE)]
    report = json.loads((version / "analysis/report.json").read_text())
    shown = [a for a in report["adversarial"] if a["attack"] != "descent"][:TRIPTYCHS]
    triptychs = [Image.open(version / "analysis" / a["triptych"]).convert("RGB") for a in shown]
    for left, right in zip(triptychs[::2], triptychs[1::2], strict=True):
        row = Image.new(
            "RGB", (left.width + right.width + 24, max(left.height, right.height)), "white"
        )
        row.paste(left, (0, 0))
        row.paste(right, (left.width + 24, 0))
        rows.append(row)
    width = max(row.width for row in rows)
    for entry in report["ideal"]:
        way = Image.open(version / "analysis" / entry["strip"]).convert("RGB")
        rows.append(way.resize((width, round(way.height * width / way.width))))
    sheet = Image.new(
        "RGB", (max(r.width for r in rows), sum(r.height + 12 for r in rows)), "white"
    )
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 12
    sheet.save(out, quality=82)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
