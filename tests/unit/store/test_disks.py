"""Which disks a store may lie on."""

from pathlib import Path

import pytest

from deployments.errors import StoreUnusable
from deployments.store import disks
from deployments.store.disks import file_system, require_own_disk
from deployments.store.store import Store
from tests.support.stored.stores import ENCODER

LINES = """\
overlay / overlay rw,relatime 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/photos /srv nfs4 rw,vers=4.2 0 0
/dev/sda1 /srv/disk xfs rw 0 0
//box/share /mnt/two\\040words cifs rw 0 0
/dev/sdb1 /mnt/twice ext4 rw 0 0
s3fs /mnt/twice fuse.s3fs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data", "overlay"),
        ("/dev/shm/a/b", "tmpfs"),
        ("/srv", "nfs4"),
        ("/srv/store", "nfs4"),
        ("/srv/disk/store", "xfs"),
        ("/srv/disks", "nfs4"),
        ("/mnt/two words/store", "cifs"),
        ("/mnt/twice/store", "fuse.s3fs"),
    ],
)
def test_the_innermost_file_system_counts(path: str, kind: str) -> None:
    assert file_system(Path(path), LINES) == kind


def test_this_machines_own_list_is_understood(tmp_path: Path) -> None:
    if disks.MOUNTS.exists():
        assert file_system(tmp_path, disks.MOUNTS.read_text())
    require_own_disk(tmp_path)


def test_a_store_refuses_a_network_file_system(tmp_path: Path, monkeypatch) -> None:
    """Also by a link, and before anything is made there."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/photos {tmp_path}/far nfs rw 0 0\n")
    monkeypatch.setattr(disks.require_own_disk, "__defaults__", (mounts,))
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    for folder in (tmp_path / "far" / "store", tmp_path / "link" / "store"):
        with pytest.raises(StoreUnusable, match=r"network file system \(nfs\).*store\.path"):
            Store(folder, ENCODER)
    assert list((tmp_path / "far").iterdir()) == []
    Store(tmp_path / "near", ENCODER).close()


def test_where_nothing_is_known_of_file_systems_all_pass(tmp_path: Path) -> None:
    require_own_disk(tmp_path, tmp_path / "none")
