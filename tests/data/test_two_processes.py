"""Two processes that Fabric launches: the first reads the data, and fills the cache, before the second begins."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

# what each process did when is written down; the first is slow, and what it prepares must not be prepared again
SCRIPT = """
import json, os, sys, time
from pathlib import Path
import datasets
from fewstep import build, cli

folder, rank = Path(__file__).parent, os.environ.get("LOCAL_RANK", "0")

def timed(config, seed, load_data=build.load_data):
    began = time.monotonic()
    time.sleep(1 if rank == "0" else 0)
    data = load_data(config, seed)
    caches = sorted((file.name, file.stat().st_mtime_ns) for file in Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
    (folder / f"rank{rank}.json").write_text(json.dumps([began, time.monotonic(), caches, len(data.train)]))
    return data

build.load_data = timed
commands = json.loads((folder / "commands.json").read_text())
code = 0
for command in commands:
    if command is commands[1]:
        (folder / "images" / "7.png").write_bytes(b"words")
    sys.argv = [__file__, *command]
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
sys.exit(code)
"""


def test_one_process_prepares_the_data_and_the_other_waits(tmp_path, teacher_overrides):
    """And where the data are damaged, as they are before the second command, it is said once a process, and nobody waits for ever."""
    (tmp_path / "images").mkdir()
    for k in range(20):
        Image.fromarray(np.full((8, 8), 10 * k, np.uint8)).save(tmp_path / "images" / f"{k}.png")
    table = "file_name,label\n" + "".join(f"{k}.png,{k % 2}\n" for k in range(20))
    (tmp_path / "images" / "metadata.csv").write_text(table)  # which only `datasets` reads, through its cache
    data = f"data={{name: images, path: '{tmp_path / 'images'}', size: 8, channels: 1}}"
    command = ["train", "teacher/digits", data, *teacher_overrides, "trainer.devices=2", "trainer.accelerator=cpu", "steps=1", "--out"]
    (tmp_path / "commands.json").write_text(json.dumps([[*command, str(tmp_path / name)] for name in ("good", "bad")]))
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
    )
    try:
        _, err = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs: {process.communicate()[1]}")
    assert (tmp_path / "good" / "model").exists(), err
    first, second = (json.loads((tmp_path / f"rank{k}.json").read_text()) for k in range(2))
    assert second[0] >= first[1]  # the monotonic clock is the machine's
    assert first[2] == second[2] != []  # the cache that the first has written, and no other
    assert first[3] == second[3] == 18
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "1 image that cannot be read: row " in err
    assert "/7.png (" in err
    assert not (tmp_path / "bad").exists()
