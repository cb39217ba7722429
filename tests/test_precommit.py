"""The hooks, with the real pre-commit and the real git, in scratch repositories."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
GOOD = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.fc = nn.Linear(64, 512)

    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)))
"""
BAD = GOOD.replace("nn.Linear(64, 512)", "nn.Linear(64 * 16 * 16, 512)").replace("mean((2, 3))", "flatten(1)")
CONFIG = """\
repos:
- repo: {source}
  rev: {revision}
  hooks:
  - id: convaudit
"""
SETTINGS = 'input = "1,3,32,32"\nignore = ["CNV205"]\n'


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "CONVAUDIT_CACHE_DIR": str(folder / ".git" / "kept"),
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c",
        "PRE_COMMIT_COLOR": "never", **environment,
    }  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env, timeout=500)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A repository of the project as it stands in the working tree, and its commit."""
    folder = tmp_path_factory.mktemp("source")
    names = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, os.fsdecode(names.stdout).split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        assert run(folder, "git", *command).returncode == 0
    return folder, run(folder, "git", "rev-parse", "HEAD").stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, source: tuple[Path, str]) -> Path:
    """A scratch repository with the hook installed and one good model."""
    run(tmp_path, "git", "init", "-q")
    (tmp_path / ".pre-commit-config.yaml").write_text(CONFIG.format(source=source[0], revision=source[1]))
    (tmp_path / "convaudit.toml").write_text(SETTINGS)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net.py").write_text(GOOD)
    assert run(tmp_path, "pre-commit", "install").returncode == 0
    return tmp_path


def commit(repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    run(repository, "git", "add", "-A")
    return run(repository, "git", "commit", "-m", "change", **environment)


def commits(repository: Path) -> int:
    return len(run(repository, "git", "log", "--oneline").stdout.splitlines())


def test_blocks_a_bad_commit_at_its_line_and_passes_it_once_suppressed(repository: Path) -> None:
    good = commit(repository)
    assert good.returncode == 0, good.stdout + good.stderr

    (repository / "models" / "net.py").write_text(BAD)
    blocked = commit(repository)
    assert blocked.returncode == 1
    assert "models/net.py:8: CNV101 warning" in blocked.stdout + blocked.stderr
    assert commits(repository) == 1

    (repository / "models" / "net.py").write_text(
        BAD.replace("16, 512)", "16, 512)  # convaudit: ignore[CNV101, CNV103] the paper's own head")
    )
    passed = commit(repository)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert commits(repository) == 2


def test_a_changed_file_has_the_models_that_import_it_audited(repository: Path) -> None:
    (repository / "models" / "heads.py").write_text("WIDTH = 64\n\n\ndef flat(x):\n    return x.mean((2, 3))\n")
    net = GOOD.replace("from torch", "from heads import WIDTH, flat\nfrom torch", 1)
    net = net.replace("nn.Linear(64", "nn.Linear(WIDTH").replace("self.stem(x).mean((2, 3))", "flat(self.stem(x))")
    (repository / "models" / "net.py").write_text(net)
    assert commit(repository).returncode == 0

    (repository / "models" / "heads.py").write_text("WIDTH = 64 * 256\n\n\ndef flat(x):\n    return x.flatten(1)\n")
    blocked = commit(repository)

    assert blocked.returncode == 1
    assert "models/net.py:9: CNV101 warning" in blocked.stdout + blocked.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import torch\nimport no_such_package\nclass Net(torch.nn.Module):\n    pass\n", "No module named 'no_such_package'"),
        (GOOD.replace("super().__init__()", "raise RuntimeError('not today')"), "not today"),
        (GOOD.replace("super().__init__()", "super().__init__()\n        while True: pass"), "no answer within"),
        (GOOD.replace("__init__(self)", "__init__(self, width)"), "Net needs width"),
        ("import sys\nfrom torch import nn\nsys.exit(3)\n\n\nclass Net(nn.Module):\n    pass\n", "SystemExit"),
    ],
    ids=["import", "constructor", "loop", "arguments", "exit"],
)
def test_never_blocks_for_its_own_reasons(repository: Path, text: str, says: str) -> None:
    (repository / "models" / "net.py").write_text(text)
    files = ["models/net.py", "convaudit.toml"]
    done = run(repository, "convaudit", "check", "--changed", *files, "--timeout", "4")
    strict = repository / "convaudit.toml"
    strict.write_text(SETTINGS + "strict = true\n")
    again = run(repository, "convaudit", "check", "--changed", *files, "--timeout", "4")

    assert done.returncode == 0
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert again.returncode == (0 if says == "Net needs width" else 2)


def test_a_syntax_error_in_a_changed_file_blocks(repository: Path) -> None:
    (repository / "models" / "net.py").write_text("class Net(:\n")
    blocked = commit(repository)

    assert blocked.returncode == 1  # pre-commit's own code for a failed hook
    assert "exit code: 2" in blocked.stdout + blocked.stderr
    assert "models/net.py:1: syntax error" in blocked.stdout + blocked.stderr


def test_a_commit_without_models_starts_no_worker(repository: Path) -> None:
    (repository / "tools.py").write_text("import os\nprint(os.getcwd())\n")
    (repository / "test_net.py").write_text(BAD)
    done = run(repository, "convaudit", "check", "--changed", "tools.py", "README.md")
    tests = run(repository, "convaudit", "check", "--changed", "test_net.py")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tests.returncode, tests.stdout) == (0, "")
    assert tests.stderr == "convaudit: test_net.py: a test's models are not audited; name one to\n"


def test_checkpoints_are_read_and_only_malicious_ones_block(repository: Path) -> None:
    config = repository / ".pre-commit-config.yaml"  # the hook as it is, but for an environment of its own
    config.write_text(config.read_text().replace("id: convaudit", "id: convaudit-checkpoints\n    language: system"))
    save_file({"w": torch.zeros(3, 4)}, repository / "good.safetensors")
    torch.save({"w": torch.zeros(3)}, repository / "plain.pt")
    torch.save({"model": torch.nn.Linear(2, 2)}, repository / "classes.pt")
    (repository / "evil.pt").write_bytes(b"cposix\nsystem\n(S'touch executed'\ntR.")
    blocked = commit(repository)

    assert blocked.returncode == 1
    assert "evil.pt: CNV601 error loading it would call posix.system('touch executed')" in blocked.stderr
    assert not (repository / "executed").exists()
    (repository / "evil.pt").unlink()
    passed = commit(repository)
    assert passed.returncode == 0, passed.stderr
    assert "good.safetensors: 12 parameters, 48 B of float32, 1 tensor" in passed.stderr
    assert "classes.pt: CNV610 warning" in passed.stderr
    (repository / "notes.md").write_text("nothing to read\n")
    assert "(no files to check)Skipped" in commit(repository).stderr


def test_try_repo_of_the_isolated_hook_without_torch_is_one_line(repository: Path, source: tuple[Path, str]) -> None:
    """`convaudit-isolated` makes an environment of its own; without torch in it nothing is blocked."""
    run(repository, "git", "add", "-A")
    done = run(
        repository, "pre-commit", "try-repo", str(source[0]), "convaudit-isolated", "--all-files", "--verbose",
        PRE_COMMIT_HOME=str(repository / ".git" / "pre-commit"),
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "a model target needs PyTorch" in done.stdout
    assert "Traceback" not in done.stdout
