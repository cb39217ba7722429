"""The Lightning callback in real fits, under both names of the package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FIT = """
import importlib, json, sys, warnings

host = sys.argv[1]
L = importlib.import_module(host)
import torch
from torch import nn
from convaudit.integrations.lightning import Callback, ConvauditCallback, FindingsError


class Net(L.LightningModule):
    def __init__(self, example=None):
        super().__init__()
        self.example_input_array = example
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.fc = nn.Linear(8 * 16 * 16, 1024)

    def forward(self, x):
        return self.fc(self.stem(x).flatten(1))

    def training_step(self, batch, index):
        return self(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(2, 3, 32, 32))


def state(module):
    tensors = [torch.get_rng_state(), *module.state_dict().values()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    return [[m.training for m in module.modules()], hooks, [t.flatten().tolist() for t in tensors]]


class Look(L.Callback):
    def on_fit_start(self, trainer, module):
        self.state = state(module)


def fit(module, *callbacks):
    said = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = L.Trainer(
            max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", default_root_dir="runs", callbacks=list(callbacks),
        )
        try:
            trainer.fit(module)
        except FindingsError as error:
            said = str(error)
    return {"steps": trainer.global_step, "said": said,
            "warned": [str(w.message) for w in caught if "convaudit" in str(w.message)]}


example = torch.zeros(1, 3, 32, 32)
before, after, callback = Look(), Look(), ConvauditCallback()
module = Net(example)
module.stem[1].eval()
out = {"default": fit(module, before, callback, after)}
out["unchanged"] = before.state == after.state
out["mixed"] = len(set(before.state[0]))
out["summary"] = [callback.result.summary.warning, callback.result.targets[0].target]
out["fail"] = fit(Net(), ConvauditCallback("strict", ("markdown", "text"), "warning", {"x": example}))
out["ignored"] = fit(Net(example), ConvauditCallback("ignored", (), "warning", ignore=["CNV"]))
out["no input"] = fit(Net(), ConvauditCallback("none"))
out["no input, strict"] = fit(Net(), ConvauditCallback("none", fail_on="error"))
out["wrong input"] = fit(Net(torch.zeros(1, 4, 32, 32)), ConvauditCallback("none"))
open("taken", "w").close()
out["no folder"] = fit(Net(example), ConvauditCallback("taken"))
out["base"] = Callback.__module__
print(json.dumps(out))
"""


@pytest.fixture(scope="module", params=["lightning.pytorch", "pytorch_lightning"])
def fits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    pytest.importorskip("lightning")
    folder = tmp_path_factory.mktemp("fit")
    command = [sys.executable, "-c", FIT, request.param]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1]), request.param


def test_a_fit_leaves_a_report_and_the_module_as_it_was(fits: tuple[Path, dict[str, Any], str]) -> None:
    folder, out, host = fits
    saved = json.loads((folder / "runs/convaudit.json").read_text())

    assert out["default"] == {"steps": 1, "said": None, "warned": []}
    assert out["unchanged"] is True
    assert out["mixed"] == 2  # a part in eval mode stays in it
    assert out["base"].startswith(host)
    assert {f["rule"] for f in saved["targets"][0]["findings"] if f["severity"] == "warning"} >= {"CNV101", "CNV103"}
    assert [saved["summary"]["warning"], saved["targets"][0]["target"]] == out["summary"]
    assert "CNV101" in (folder / "runs/convaudit.html").read_text()


def test_findings_stop_a_fit_before_its_first_step(fits: tuple[Path, dict[str, Any], str]) -> None:
    folder, out, _ = fits

    assert out["fail"]["steps"] == 0
    assert out["fail"]["said"].startswith("convaudit: Net has findings (fail_on='warning'); report in strict\n")
    assert "CNV101 warning fc: Linear 2,048→1,024" in out["fail"]["said"]
    assert sorted(path.name for path in (folder / "strict").iterdir()) == ["convaudit.md", "convaudit.txt"]
    assert out["ignored"] == {"steps": 1, "said": None, "warned": []}


def test_what_could_not_be_audited_is_said(fits: tuple[Path, dict[str, Any], str]) -> None:
    folder, out, _ = fits

    assert out["no input"]["steps"] == out["wrong input"]["steps"] == out["no folder"]["steps"] == 1
    assert "set example_input_array" in out["no input"]["warned"][0]
    assert out["no input, strict"]["steps"] == 0
    assert out["no input, strict"]["said"] == out["no input"]["warned"][0]
    assert "Net was not audited: " in out["wrong input"]["warned"][0]
    assert "4 channels" in out["wrong input"]["warned"][0] or "[1, 4, 32, 32]" in out["wrong input"]["warned"][0]
    assert "the report on Net was not written" in out["no folder"]["warned"][0]
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    "wrong", [{"fail_on": "always"}, {"formats": ["pdf"]}, {"selekt": ["CNV101"]}, {"ignore": ["CNV999"]}]
)
def test_wrong_arguments_are_named_at_once(wrong: dict[str, Any]) -> None:
    pytest.importorskip("lightning")
    from convaudit.errors import ConvauditError
    from convaudit.integrations.lightning import ConvauditCallback

    with pytest.raises(ConvauditError, match=r"fail_on is one of|unknown format 'pdf'|did you mean 'select'|CNV999"):
        ConvauditCallback(**wrong)
