"""`make bench`: what convaudit costs beside what a user would pick, as ratios measured in one run on one machine.

Each tool and model run in a process of their own: the model on meta where the tool can, one warm-up, then the median
of repeated runs; memory is the growth of the process's peak. Nothing is cached between runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
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


def rules_against_forward() -> None:
    """All rules and proofs over a plain forward of the same model on meta, in one process; the largest in seconds."""
    import timm
    import torch

    from convaudit.engine import run_rules
    from convaudit.settings import AuditSettings
    from convaudit.tracer import record

    for name in ("resnet50", "mobilenetv3_large_100", "vgg16", "swin_tiny_patch4_window7_224", *LARGEST):
        with torch.device("meta"):
            model = timm.create_model(name).eval()
            x = torch.empty(1, *model.default_cfg["input_size"])
        rules, forward = [], []
        with torch.no_grad():
            for _ in range(ROUNDS if name not in LARGEST else 2):
                start = time.perf_counter()
                model(x)
                forward.append(time.perf_counter() - start)
                graph = record(model, (x,), {})
                start = time.perf_counter()
                run_rules(graph, ((x,), {}), name, AuditSettings())
                rules.append(time.perf_counter() - start)
        spent, plain = min(rules), min(forward)
        print(f"all rules on {name:<32} {spent / plain:.2f}× a meta forward ({spent:.2f} s, {len(graph.layers)} layers)")


LARGEST = ("nasnetalarge", "tf_efficientnet_l2", "vit_giant_patch14_dinov2", "hrnet_w64", "resnetv2_152x4_bit")
NET = """
from torch import nn
from {package}.blocks{index} import WIDTH
class Net{index}(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 2, 1)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
        self.head = nn.Linear(WIDTH, 10)
    def forward(self, x):
        return self.head(self.conv(self.stem(x).relu()).relu().mean((2, 3)))
"""


PEAK = """
import atexit, re, resource, sys
def said():
    peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
    print(max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss), "torch" in sys.modules, file=sys.stderr)
atexit.register(said)
from convaudit.cli import cli
cli(sys.argv[1:])
"""
"""Runs the command line, then says its peak memory or its largest child's, in kB, and whether torch was imported."""


def checked(*arguments: str, folder: str | None = None) -> tuple[float, float]:
    """Seconds of a cold ``convaudit check`` of checkpoints and its peak memory in MB; what it says is dropped."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEAK, "check", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    kilobytes, torch = done.stderr.splitlines()[-1].split()
    if done.returncode == 2 or "Traceback" in done.stderr or torch == "True":
        raise SystemExit(f"check {' '.join(arguments)} failed, or has imported torch:\n{done.stderr}")
    return seconds, int(kilobytes) * 1024 / 1e6


def size_does_not_matter() -> None:
    """The check of a sparse checkpoint of 100 and 20 GB over one of 1 MB, with default options: the audit alone, and cold."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from checkpoints.test_hostile import sparse_checkpoints

    from convaudit.checkpoints.audit import audit_file
    from convaudit.settings import AuditSettings

    with tempfile.TemporaryDirectory() as folder:
        for kind, gigabytes in (("safetensors", 100), ("zip", 20)):
            paths = []
            for size in (10**6, gigabytes * 10**9):
                sparse_checkpoints(Path(folder, kind, str(size)), size)
                paths.append(str(next(Path(folder, kind, str(size), kind).iterdir())))
            cold: list[list[tuple[float, float]]] = [[], []]
            alone: list[list[float]] = [[], []]
            for _ in range(ROUNDS):
                for path, runs, times in zip(paths, cold, alone, strict=True):
                    runs.append(checked(path))
                    start = time.perf_counter()
                    audit_file(path, AuditSettings())
                    times.append(time.perf_counter() - start)
            (small, _), (seconds, megabytes) = (map(min, zip(*runs, strict=True)) for runs in cold)
            audit = f"audit {min(alone[1]) * 1000:.1f} ms, {min(alone[1]) / min(alone[0]):.2f}× that of 1 MB"
            print(f"{kind} of {gigabytes} GB: {audit}; cold check {seconds:.2f} s (at most 1 s), {seconds / small:.2f}×; {megabytes:.0f} MB (at most 80)")


def hostile() -> None:
    """The hostile files that cost most, with default options."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from checkpoints.malicious import cases
    from checkpoints.test_hostile import watch

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        titles = {}
        for index, (title, name, data, _) in enumerate(cases()):
            path = Path(folder, f"{index:04}", name)
            path.parent.mkdir()
            with path.open("wb") as file:
                file.write(data)
                file.truncate(getattr(data, "size", len(data)))
            titles[str(path)] = title
        rows = [row for row in watch(Path(folder)) if "seconds" in row]
    ended = len(titles) - len(rows)
    for field, share, unit, most in (("seconds", 1, "s of processor time", 2), ("kilobytes", 1024 / 1e6, "MB", 300)):
        worst = sorted(((row[field] * share, titles[row["name"]]) for row in rows), reverse=True)[:3]
        said = ", ".join(f"{value:.3g} ({title})" for value, title in worst)
        print(f"hostile files, {len(titles)}, {ended} ended by a limit: {said} {unit}; at most {most}")


def whole_folder() -> None:
    """A folder of 40 checkpoints over one of them."""
    import torch
    from torchvision.models import get_model

    with tempfile.TemporaryDirectory() as top:
        made = Path(top, "weights")
        made.mkdir()
        for index in range(40):
            torch.save(get_model("resnet18").state_dict(), made / f"{index}.pt")
        one, many = ([checked(target, folder=top) for _ in range(3)] for target in ("weights/0.pt", "weights"))
        (seconds, megabytes), (whole, most) = (map(min, zip(*runs, strict=True)) for runs in (one, many))
        print(f"a folder of 40 resnet18: {whole:.2f} s, {whole / seconds:.1f}× one of them ({seconds:.2f} s); {most:.0f} MB, one {megabytes:.0f} MB")


def weights() -> None:
    """The scan that all weight rules share against numpy on the same file: np.fromfile, then one pass of np.isfinite.

    Integers are never infinite, so the scan passes them over; numpy looks for their largest.
    """
    import numpy as np
    import torch
    from torchvision.models import get_model

    from convaudit.checkpoints.architecture import architecture_of
    from convaudit.checkpoints.formats import read_checkpoint
    from convaudit.checkpoints.weights import scan

    def by_numpy(dtype: str) -> object:
        values = np.fromfile(path, np.uint16 if dtype == "bfloat16" else dtype)
        if dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.max() if dtype == "int8" else np.isfinite(values).all()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.pt")
        for name in ("vgg16", "resnet50", "resnet152", "vit_b_16"):
            for dtype in ("float32", "bfloat16", "float16", "float64", "int8"):
                state = get_model(name).state_dict()
                torch.save({key: value.to(getattr(torch, dtype)) for key, value in state.items()}, path)
                file = read_checkpoint(str(path))
                architecture, ratios = architecture_of(file), []
                for _ in range(2 * ROUNDS):
                    start = time.perf_counter()
                    by_numpy(dtype)
                    read = time.perf_counter()
                    scan(file, architecture)
                    ratios.append((read - start) / (time.perf_counter() - read))
                print(f"weights of {name:<9} in {dtype:<8} ({file.file_bytes / 1e6:4.0f} MB): scanned at {statistics.median(ratios):.2f}× the speed of numpy's reading (at least 0.50)")


def weights_memory() -> None:
    """Peak memory of a cold check that reads all weights: convolutions of random weights, 40 MB of them and 3 GB."""
    import numpy as np

    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for count, filters in ((1, 450), (7, 4096)):
            shape = [filters, 2700, 3, 3]
            size = 4 * filters * 2700 * 9
            header = json.dumps({f"{i}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [i * size, (i + 1) * size]} for i in range(count)}).encode()
            path = Path(folder, f"{count}.safetensors")
            with path.open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for _ in range(count * filters):
                    file.write(chance.standard_normal(2700 * 9, np.float32).tobytes())
            seconds, megabytes = checked(str(path), "--weights")
            print(f"weights of {path.stat().st_size / 1e6:.0f} MB: {megabytes:.0f} MB of memory (at most 300), {path.stat().st_size / seconds / 1e9:.2f} GB/s")
            path.unlink()


def scanners() -> None:
    """convaudit, picklescan, modelscan and fickling on the same hostile and honest files."""
    subprocess.run([sys.executable, str(Path(__file__).with_name("scanners.py"))], check=True)


def hook(pairs: int = 7) -> None:
    """The hook in a repository of 200 files, 12 of them models: what a commit waits for."""
    with tempfile.TemporaryDirectory() as kept, tempfile.TemporaryDirectory() as name:
        root, package = Path(name), Path(name, "src")
        package.mkdir()
        for index in range(188):
            (package / f"blocks{index}.py").write_text(f"import os\nimport math\nWIDTH = 64\n\n\ndef helper{index}(x):\n    return math.sqrt(x)\n" * 8)
        for index in range(12):
            (package / f"net{index}.py").write_text(NET.format(package="src", index=index))
        (root / "convaudit.toml").write_text('input = "1,3,32,32"\n')
        header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        (root / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        for command in (["init", "-q"], ["add", "-A"]):
            subprocess.run(["git", *command], cwd=root, check=True)

        def seconds(*command: str) -> float:
            start = time.perf_counter()
            done = subprocess.run(command, cwd=root, capture_output=True, env=environment, check=False)
            if done.returncode == 2:
                raise SystemExit(done.stderr.decode())
            return time.perf_counter() - start

        script = str(Path(sys.executable).with_name("convaudit"))
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"CONVAUDIT_CACHE_DIR": kept, "PYTHONPATH": str(root)}
        model = ("src/net3.py",)
        for paths in (model, ("src/blocks40.py",)):
            seconds(script, "check", "--changed", *paths)
        rows: dict[str, list[float]] = {"import torch": [], "no model": [], "unchanged model": [], "changed model": [], "no checkpoint": [], "a checkpoint": []}
        for turn in range(pairs):
            rows["import torch"].append(seconds(sys.executable, "-c", "import torch"))
            rows["no model"].append(seconds(script, "check", "--changed", "src/blocks40.py", "src/blocks41.py", "README.md"))
            rows["unchanged model"].append(seconds(script, "check", "--changed", *model))
            (package / "net3.py").write_text(NET.format(package="src", index=3) + f"# {turn}\n")
            rows["changed model"].append(seconds(script, "check", "--changed", *model))
            for what, path in (("no checkpoint", "README.md"), ("a checkpoint", "w.safetensors")):
                rows[what].append(seconds(script, "check", "--changed", "--fail-on", "error", path))
        alone = rows["import torch"]
        for what, times in rows.items():
            ratio = statistics.median(t / a for t, a in zip(times, alone, strict=True))
            print(f"hook, {what:<16} {statistics.median(times) * 1000:5.0f} ms, {ratio:.2f}× `import torch`")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        globals()[sys.argv[1]]()
    elif len(sys.argv) == 3:
        measure(sys.argv[1], sys.argv[2])
    else:
        compare_tools()
        cold_start()
        memory()
        rules_against_forward()
        hook()
        size_does_not_matter()
        hostile()
        whole_folder()
        weights()
        weights_memory()
        scanners()
