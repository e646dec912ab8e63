"""The code that travels: the tracked files of this checkout, in one small archive.

Only files that git tracks go, with their present content: edits that are not committed
do, and data, environments, credentials and notes that happen to lie about do not. The
same content gives the same archive, so that a host knows what it has already.
"""

import dataclasses
import gzip
import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

_MAX_BYTES = 200 * 2**20


@dataclasses.dataclass(frozen=True)
class Archive:
    """A gzipped tar file in memory, and the digest of what is inside."""

    digest: str
    content: bytes
    untracked: tuple[str, ...] = ()  # Python files that stay behind

    @property
    def name(self) -> str:
        return f"code-{self.digest}.tgz"

    def save(self, folder: Path) -> Path:
        """Writes the archive into a folder and returns its path."""
        path = folder / self.name
        path.write_bytes(self.content)
        return path


def pack(root: Path) -> Archive:
    """Packs the tracked files below `root`.

    Raises:
        ValueError: if `root` is no git checkout, or is too large to send about.
    """
    names = [name for name in _git(root, "ls-files", "-z") if (root / name).is_file()]
    if not names:
        raise ValueError(f"{root}: git tracks no file here; run git add")
    size = sum((root / name).stat().st_size for name in names)
    if size > _MAX_BYTES:
        raise ValueError(
            f"{root}: {size / 2**20:.0f} MB of tracked files; data belongs into a bucket"
        )
    digest = hashlib.sha256()
    buffer = io.BytesIO()
    # Without times, owners and the name in the header: equal content, equal bytes.
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name in sorted(names):
            path = root / name
            content = path.read_bytes()
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            header = tarfile.TarInfo(name)
            header.size, header.mode = len(content), mode
            tar.addfile(header, io.BytesIO(content))
            digest.update(f"{name}\0{mode}\0{len(content)}\0".encode() + content)
    untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "*.py")
    return Archive(digest.hexdigest()[:12], buffer.getvalue(), tuple(untracked))


def _git(root: Path, *words: str) -> list[str]:
    try:
        done = subprocess.run(
            ["git", "-C", root, *words], capture_output=True, check=True
        )
    except FileNotFoundError as error:
        raise ValueError("git is not installed; it lists the files to send") from error
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"{root}: {error.stderr.decode().strip()} (the code to send is what git "
            "tracks: run from a checkout)"
        ) from error
    return [name for name in done.stdout.decode().split("\0") if name]
