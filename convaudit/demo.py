"""``convaudit demo``: the article's networks and a few real ones, audited and reported."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import click

from convaudit.settings import LANGUAGES

ARTICLE = {
    "FCNetwork": "1,1,28,28", "ConvNetwork": "1,1,28,28", "FCNet": "1,3,32,32", "BasicCNN": "1,3,32,32",
    "ShallowWideNet": "1,3,32,32", "DeepNarrowNet": "1,3,32,32", "EfficientConvNet": "1,3,32,32",
    "LinearOnImage": "1,1,224,224",
}  # fmt: skip
REAL = ("torchvision:alexnet", "torchvision:vgg16", "timm:resnet50", "timm:efficientnet_b0")
"""AlexNet shows each of the article's four anti-patterns, ResNet-50 none of them."""


@click.command()
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("convaudit-demo"), show_default=True)
@click.option("-o", "--output", "outputs", multiple=True, type=click.Path(path_type=Path), help="Report file beside those; repeats.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True)
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="Language of the tour and the reports; data stays the same.")
def demo(output_dir: Path, outputs: tuple[Path, ...], jobs: int, lang: str) -> None:
    """Audit the article's networks and a few real ones; write tour.html (from fully connected to convolution, in live
    figures), report.html, report.md and report.json."""
    from convaudit import output
    from convaudit.errors import ReportError
    from convaudit.pool import Pool
    from convaudit.registry import report_part
    from convaudit.result import assemble
    from convaudit.session import ask
    from convaudit.settings import AuditSettings
    from convaudit.tour.figures import Measuring, Tour

    settings = dataclasses.asdict(AuditSettings())
    requests = [{"target": f"convaudit.networks:{n}", "input": [s], "settings": settings} for n, s in ARTICLE.items()]
    requests += [
        {"target": name, "settings": settings} for name in REAL if importlib.util.find_spec(name.partition(":")[0])
    ]
    separable = {**requests[list(ARTICLE).index("BasicCNN")], "settings": dataclasses.asdict(AuditSettings(select=["CNV501"]))}
    writers, _ = output.chosen(outputs, "text", None)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"--output-dir {output_dir}: cannot be made: {error.strerror}") from error
    for path in outputs:
        output.check_writable(path)
    with Pool(jobs) as pool:
        pool.start()
        measuring = Measuring()
        *targets, last = [answer.result for answer in ask(pool, [*requests, separable], 120.0)]
        measured = measuring.result()
    result = assemble(targets)
    click.echo(output.report("text").render(result, color=sys.stdout.isatty(), lang=lang), nl=False)
    pages = {name: output.report_for(Path(name)).render(result, lang=lang) for name in ("report.html", "report.md", "report.json")}
    networks = dict(zip(ARTICLE, targets))
    if not any(target.error for target in (*networks.values(), last)):
        pages = {"tour.html": report_part("_tour").render(Tour(networks, last, measured), lang=lang), **pages}
    for name, page in pages.items():
        output.write(output_dir / name, page)
        click.echo(f"wrote {output_dir / name}")
    for path, writer in writers:
        output.write(path, output.text_of(writer, result, lang=lang))
        click.echo(f"wrote {path}")
    if result.summary.failed:
        sys.exit(2)
