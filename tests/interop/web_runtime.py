"""onnxruntime-web as npm has it, without npm: two files of its archive, fetched once into the folder of temporary files."""

import io
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from fewstep.interop.export_page import RUNTIME, VERSION

ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"


def web_runtime() -> Path:
    """The folder with the files, which is kept for the next time. Raises OSError where the registry cannot be reached."""
    folder = Path(tempfile.gettempdir()) / f"fewstep-onnxruntime-web-{VERSION}"
    if not folder.is_dir():
        partial = Path(tempfile.mkdtemp())
        with urllib.request.urlopen(ADDRESS, timeout=60) as answer, tarfile.open(fileobj=io.BytesIO(answer.read())) as archive:
            for name in RUNTIME:
                content = archive.extractfile(f"package/dist/{name}")
                assert content is not None
                (partial / name).write_bytes(content.read())
        try:
            os.replace(partial, folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"{web_runtime()}\n")
