"""`make bench`: what convaudit costs beside what a user would pick, as ratios measured in one run on one machine.

Each tool and model run in a process of their own: the model on meta where the tool can, one warm-up, then the median
of repeated runs; memory is the growth of the process's peak. Nothing is cached between runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS = ("resnet50", "vgg16", "efficientnet_b0", "convnext_tiny", "swin_t")
TOOLS = ("convaudit", "torchinfo", "fvcore", "ptflops", "thop", "FlopCounterMode", "torch.export")
ON_CPU = {"fvcore", "ptflops", "thop"}  # these fail, or count nothing, on meta tensors
ROUNDS = 5


def run_of(tool: str, model: Any, x: Any) -> Callable[[], Any]:
    """One run of ``tool`` on ``model`` with everything imported."""
    import torch

    if tool == "convaudit":
        from convaudit import audit

        return lambda: audit(model, x)
    if tool == "torchinfo":
        from torchinfo import summary

        return lambda: summary(model, input_data=[x], device="meta", verbose=0)
    if tool == "fvcore":
        from fvcore.nn import FlopCountAnalysis

        return lambda: FlopCountAnalysis(model, x).unsupported_ops_warnings(False).total()
    if tool == "ptflops":
        from ptflops import get_model_complexity_info

        shape = tuple(x.shape[1:])
        return lambda: get_model_complexity_info(model, shape, as_strings=False, print_per_layer_stat=False)
    if tool == "thop":
        import copy

        from thop import profile

        return lambda: profile(copy.deepcopy(model), inputs=(x,), verbose=False)
    if tool == "FlopCounterMode":
        from torch.utils.flop_counter import FlopCounterMode

        def count() -> None:
            with FlopCounterMode(display=False), torch.no_grad():
                model(x)

        return count
    return lambda: torch.export.export(model, (x,), strict=False)


def measure(tool: str, name: str) -> None:
    """Print seconds (median) and the growth of peak memory in bytes of one tool on one model."""
    import torch
    from torchvision.models import get_model

    with torch.device("cpu" if tool in ON_CPU else "meta"):
        model = get_model(name).eval()
        x = torch.zeros(1, 3, 224, 224)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run = run_of(tool, model, x)
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps([statistics.median(times[1:]), grown]))


def in_process(tool: str, name: str) -> tuple[float, int]:
    """:func:`measure` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, tool, name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool} on {name} failed:\n{done.stderr[-2000:]}")
    seconds, grown = json.loads(done.stdout.splitlines()[-1])
    return seconds, grown


def compare_tools() -> None:
    """A table: each tool's time over convaudit's (above 1: convaudit is faster), and memory added in MB."""
    results = {(tool, name): in_process(tool, name) for tool in TOOLS for name in MODELS}
    print("time over convaudit's full audit (trace, costs, rules, proofs); in brackets MB added to the process")
    print(f"{'':<17}" + "".join(f"{name:>20}" for name in MODELS) + f"{'geometric mean':>18}")
    for tool in TOOLS:
        ratios = [results[tool, name][0] / results["convaudit", name][0] for name in MODELS]
        cells = [f"{r:.2f}× ({results[tool, n][1] / 1e6:.0f})" for r, n in zip(ratios, MODELS, strict=True)]
        mean = statistics.geometric_mean(ratios)
        print(f"{tool:<17}" + "".join(f"{cell:>20}" for cell in cells) + f"{mean:>17.2f}×")
    own = ", ".join(f"{name} {results['convaudit', name][0] * 1000:.0f} ms" for name in MODELS)
    print(f"convaudit itself on this machine: {own}")


NETWORKS = ("BasicCNN", "DeepNarrowNet", "FCNetwork", "ConvNetwork")


def cold_start(pairs: int = 7) -> None:
    """A cold ``convaudit check`` of the article's networks over ``import torch`` alone, in fresh processes, in pairs."""

    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=False, cwd=folder)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        source = Path(__file__).parents[2] / "convaudit" / "networks.py"
        (Path(folder) / "networks.py").write_text(source.read_text())
        for name in NETWORKS:
            shape = "1,1,28,28" if name in ("FCNetwork", "ConvNetwork") else "1,3,32,32"
            ratios = []
            for _ in range(pairs):
                alone = seconds("-c", "import torch")
                ratios.append(seconds("-m", "convaudit", "check", f"networks.py:{name}", "--input", shape) / alone)
            print(f"cold check of {name:<15} {statistics.median(ratios):.2f}× `import torch` ({pairs} pairs)")


def memory() -> None:
    """Peak memory of auditing vgg16 (138M parameters) beyond auditing BasicCNN, each in its own process."""

    def peak(target: str, *options: str) -> int:
        code = "import resource, sys; from convaudit.cli import cli; cli(sys.argv[1:], standalone_mode=False)"
        code = f"import atexit, resource, sys\natexit.register(lambda: print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr))\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", code, "check", target, *options], capture_output=True, text=True, check=False
        )
        return int(done.stderr.splitlines()[-1]) * 1024

    small = peak("convaudit.networks:BasicCNN", "--input", "1,3,32,32")
    large = peak("torchvision:vgg16")
    print(f"memory: vgg16 {large / 1e6:.0f} MB, BasicCNN {small / 1e6:.0f} MB: {(large - small) / 1e6:+.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], sys.argv[2])
    else:
        compare_tools()
        cold_start()
        memory()
