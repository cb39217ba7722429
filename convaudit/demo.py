"""``convaudit demo``: the article's networks and a few real ones, audited and reported."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import click

ARTICLE = {
    "FCNetwork": "1,1,28,28", "ConvNetwork": "1,1,28,28", "FCNet": "1,3,32,32", "BasicCNN": "1,3,32,32",
    "ShallowWideNet": "1,3,32,32", "DeepNarrowNet": "1,3,32,32", "EfficientConvNet": "1,3,32,32",
}  # fmt: skip
REAL = ("torchvision:alexnet", "torchvision:vgg16", "timm:resnet50", "timm:efficientnet_b0")
"""AlexNet shows each of the article's four anti-patterns, ResNet-50 none of them."""


@click.command()
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("convaudit-demo"), show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True)
def demo(output_dir: Path, jobs: int) -> None:
    """Audit the article's networks and a few real ones; write report.html, report.md and report.json."""
    from convaudit import output
    from convaudit.pool import Pool
    from convaudit.result import assemble
    from convaudit.session import ask
    from convaudit.settings import AuditSettings

    settings = dataclasses.asdict(AuditSettings())
    requests = [{"target": f"convaudit.networks:{n}", "input": [s], "settings": settings} for n, s in ARTICLE.items()]
    requests += [
        {"target": name, "settings": settings} for name in REAL if importlib.util.find_spec(name.partition(":")[0])
    ]
    output_dir.mkdir(parents=True, exist_ok=True)
    with Pool(jobs) as pool:
        result = assemble([answer.result for answer in ask(pool, requests, 120.0)])
    click.echo(output.report("text").render(result, color=sys.stdout.isatty()), nl=False)
    for suffix in (".html", ".md", ".json"):
        path = output_dir / f"report{suffix}"
        output.write(path, output.report_for(path).render(result))
        click.echo(f"wrote {path}")
    if result.summary.failed:
        sys.exit(2)
