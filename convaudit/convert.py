"""``convaudit convert``: a checkpoint's tensors as a safetensors file. Nothing of the checkpoint is run."""

from __future__ import annotations

import os
from pathlib import Path

import click

from convaudit.errors import UsageError
from convaudit.terminal import say


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--key", metavar="KEY", help="The state_dict's key, where SOURCE holds more than one: state_dict_ema, generator.")
@click.option("--force", is_flag=True, help="Replace TARGET where it is there.")
@click.option("--max-pickle", type=click.IntRange(1), default=64, show_default=True, metavar="MB", help="Megabytes of one pickle that are read.")
def convert(source: Path, target: Path, key: str | None, force: bool, max_pickle: int) -> None:
    """Write the state_dict in SOURCE (any checkpoint) to TARGET (.safetensors); no code in SOURCE is run.

    Optimizer state, other state_dicts and whatever is no tensor are left out, and said. Tied tensors are written once, as
    safetensors.torch.save_model does.
    """
    from convaudit.checkpoints import convert as conversion
    from convaudit.checkpoints.formats import read_checkpoint

    if target.suffix != ".safetensors":
        raise UsageError(f"{target}: what is written is .safetensors, and nothing else")
    if source.is_dir():
        indexes = [path for pattern in ("*.index.json", ".metadata") for path in sorted(source.glob(pattern))]
        raise UsageError(f"{source}: a folder; name {indexes[0] if indexes else 'a checkpoint in it'}")
    if target.exists() and not force:
        raise UsageError(f"{target}: is there already; --force replaces it")
    file = read_checkpoint(str(source), max_pickle=max_pickle * 1000**2)
    if file.format == "safetensors":
        raise UsageError(f"{source}: is a safetensors file already")
    if target.exists() and os.path.samefile(source, target):
        raise UsageError(f"{target}: is the file that is read")
    made = conversion.plan(file, key)
    conversion.write(made, target)
    for line in made.lines:
        say(line)
    count = len(made.tensors)
    click.echo(f"wrote {target}: {count:,} tensor{'s' * (count != 1)}, {made.bytes:,} bytes")
