"""The disks that a store may lie on."""

from __future__ import annotations

from pathlib import Path

from deployments.errors import StoreUnusable

MOUNTS = Path("/proc/self/mounts")
# File systems that other machines share, by the names that Linux gives them.
NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4"}
    | {"ocfs2", "orangefs", "smb3", "smbfs"}
)
FUSE = "fuse."  # and of a program: sshfs, s3fs, rclone and many others, most of them networks


def require_own_disk(path: Path, mounts: Path = MOUNTS) -> None:
    """Check that a folder lies on a disk of this machine.

    The database maps its file into memory, and locks it. Over a network neither holds: another
    machine sees old pages, and two owners don't notice each other.

    Args:
        path: may be missing.
        mounts: Linux's list of file systems. Where there is none, nothing is known, and all pass.

    Raises:
        StoreUnusable
    """
    kind = file_system(path, mounts.read_text()) if mounts.exists() else ""
    if kind in NETWORK or kind.startswith(FUSE):
        raise StoreUnusable(
            f"The store in {path} would lie on a network file system ({kind}), which loses data: "
            "configure a folder on a disk of this machine (store.path). Backups may lie there."
        )


def file_system(path: Path, mounts: str) -> str:
    """Return the kind of the file system that a path is on, by the longest mount point.

    Args:
        mounts: as in Linux's `/proc/self/mounts`: later lines lie above earlier ones.
    """
    kinds = {}
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split(" ")
        kinds[Path(point.encode().decode("unicode_escape"))] = kind  # `\040` is a space
    real = path.resolve()
    return next((kinds[one] for one in (real, *real.parents) if one in kinds), "")
