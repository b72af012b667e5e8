"""The wheel carries its configs: installed elsewhere it runs the same."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmtrain.config import shipped_dir
from tests.test_readme import SHORT

ROOT = Path(__file__).parents[1]


def command(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_the_wheel_installed_elsewhere_runs_the_same(tmp_path: Path) -> None:
    command("-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path / "wheels"), str(ROOT), cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").glob("llmtrain-*.whl")
    shipped = {f"llmtrain/configs/{p.relative_to(shipped_dir())}" for p in shipped_dir().rglob("*.yaml")}
    assert shipped <= set(zipfile.ZipFile(wheel).namelist())
    command("-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    where = command("-c", "import llmtrain; print(llmtrain.__file__)", cwd=away, path=tmp_path / "site")
    assert Path(where.strip()).is_relative_to(tmp_path / "site")
    here = command("-m", "llmtrain", "--help", cwd=ROOT)
    assert command("-m", "llmtrain", "--help", cwd=away, path=tmp_path / "site") == here
    command("-m", "llmtrain", "pretrain", *SHORT, "output_dir=run", cwd=away, path=tmp_path / "site")
    assert (away / "run" / "final" / "model.safetensors").is_file()
