"""`make screenshots`: the pictures of docs/images, taken of reports that convaudit writes now."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

IMAGES = Path(__file__).parent / "images"
MODELS = ["timm:resnet50", "torchvision:alexnet", "torchvision:vgg16", "timm:efficientnet_b0", "timm:convnext_tiny", "convaudit.networks:BasicCNN"]
SHOTS = [
    ("report-resnet50", MODELS[:1], 1440, "light", 4200),
    ("report-resnet50-phone", MODELS[:1], 360, "dark", 2600),
    ("report-alexnet", MODELS[1:2], 1440, "light", 1000),
    ("report-alexnet-tablet", MODELS[1:2], 768, "dark", 2000),
    ("report-index", MODELS, 1440, "light", 800),
    ("tour", "en", 1100, "light", 2600),
    ("tour-zh", "zh", 1100, "light", 1400),
]
"""File, targets (of the tour its language), width, colour scheme, greatest height."""


def shoot(browser: Browser, report: Path, width: int, scheme: str, height: int) -> Image.Image:
    """The top of a report, in 128 colours."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(report.as_uri())
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    page.close()
    return picture.crop((0, 0, width, min(height, picture.height))).quantize(128, dither=Image.Dither.NONE)


def main() -> None:
    """Take them all."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, targets, width, scheme, height in SHOTS:
            report = Path(folder, name, "tour.html")  # as the demo calls it
            report.parent.mkdir()
            if isinstance(targets, str):
                command = ["demo", "--lang", targets, "--output-dir", str(report.parent)]
            else:
                command = ["check", *targets, "--quiet", "--exit-zero", "-o", str(report)]
            subprocess.run([sys.executable, "-m", "convaudit", *command], check=True, stdout=subprocess.DEVNULL)
            file = IMAGES / f"{name}.png"
            shoot(browser, report, width, scheme, height).save(file, optimize=True)
            sys.stdout.write(f"{file.name}: {file.stat().st_size // 1000} kB\n")


if __name__ == "__main__":
    main()
