"""The image store: what is in it is whole, verified and immutable, whatever happens on the way."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.errors import ConfigError, InputError, LimitExceeded, NotFound, Unavailable
from appliance.images.inspect import ImageLimits
from appliance.images.store import ImageStore
from appliance.model import ImageRef

MIB = 1 << 20
BuildQcow2 = Callable[..., bytes]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk of 3 MiB of which the middle is a hole."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(b"\1" * MIB)
        file.seek(2 * MIB)
        file.write(os.urandom(MIB))
    return path


def left_over(store: ImageStore) -> list[str]:
    return sorted(os.listdir(store.directory))


class TestImport:
    def test_names_the_file_by_its_bytes(
        self, store: ImageStore, disk: Path, limits: ImageLimits
    ) -> None:
        image = store.import_file(disk, "raw", limits)
        assert image.sha256 == hashlib.sha256(disk.read_bytes()).hexdigest()
        assert (image.format, image.size_bytes, image.virtual_size_bytes) == (
            "raw",
            3 * MIB,
            3 * MIB,
        )
        path = store.path(image.sha256)
        assert path.read_bytes() == disk.read_bytes()
        assert store.verify(image.sha256) == path
        assert image.ref("ami-1").sha256 == image.sha256
        assert left_over(store) == [image.sha256]

    def test_modes(self, store: ImageStore, disk: Path, limits: ImageLimits) -> None:
        image = store.import_file(disk, "raw", limits)
        assert store.path(image.sha256).stat().st_mode & 0o7777 == 0o440
        assert store.directory.stat().st_mode & 0o7777 == 0o710

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to a group")
    def test_group_of_the_qemu_user(self, tmp_path: Path, disk: Path, limits: ImageLimits) -> None:
        store = ImageStore(tmp_path / "images", group="daemon")
        image = store.import_file(disk, "raw", limits)
        assert store.directory.group() == "daemon"
        assert store.path(image.sha256).group() == "daemon"

    def test_unknown_group_or_impossible_directory(self, tmp_path: Path, disk: Path) -> None:
        with pytest.raises(ConfigError, match="no-such-group"):
            ImageStore(tmp_path / "images", group="no-such-group")
        with pytest.raises(ConfigError, match="Could not make the image store"):
            ImageStore(disk / "images")

    def test_holes_stay_holes(self, store: ImageStore, tmp_path: Path, limits: ImageLimits) -> None:
        sparse = tmp_path / "sparse"
        sparse.touch()
        os.truncate(sparse, 48 * MIB)
        image = store.import_file(sparse, "raw", limits)
        (file,) = store.list()
        assert file.sha256 == image.sha256
        assert file.size_bytes == 48 * MIB
        assert file.allocated_bytes < MIB
        store.verify(image.sha256)

    def test_again_is_the_same_file(
        self, store: ImageStore, disk: Path, limits: ImageLimits
    ) -> None:
        first = store.import_file(disk, "raw", limits)
        inode = store.path(first.sha256).stat().st_ino
        assert store.import_file(disk, "raw", limits) == first
        assert store.path(first.sha256).stat().st_ino == inode

    def test_again_replaces_a_damaged_file(
        self, store: ImageStore, disk: Path, limits: ImageLimits
    ) -> None:
        image = store.import_file(disk, "raw", limits)
        path = store.path(image.sha256)
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"\2")
        with pytest.raises(Unavailable, match="damaged"):
            store.verify(image.sha256)
        store.import_file(disk, "raw", limits)
        store.verify(image.sha256)
        assert left_over(store) == [image.sha256]

    def test_many_at_once(self, store: ImageStore, disk: Path, limits: ImageLimits) -> None:
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(lambda _: store.import_file(disk, "raw", limits), range(16)))
        assert len(set(images)) == 1
        store.verify(images[0].sha256)
        assert left_over(store) == [images[0].sha256]

    def test_progress(self, store: ImageStore, disk: Path, limits: ImageLimits) -> None:
        seen: list[tuple[int, int]] = []
        store.import_file(disk, "raw", limits, lambda done, total: seen.append((done, total)))
        assert seen == sorted(seen)
        assert seen[-1] == (3 * MIB, 3 * MIB)

    def test_refused_image_is_never_copied(
        self, store: ImageStore, tmp_path: Path, build_qcow2: BuildQcow2, limits: ImageLimits
    ) -> None:
        bomb = tmp_path / "bomb.qcow2"
        bomb.write_bytes(build_qcow2(virtual_size=100 << 40, l1_entries=204800, file_bytes=2 * MIB))
        seen: list[int] = []
        with pytest.raises(InputError, match="over the limit"):
            store.import_file(bomb, "qcow2", limits, lambda done, total: seen.append(done))
        assert seen == []
        assert left_over(store) == []

    def test_file_that_turns_hostile_during_the_copy(
        self, store: ImageStore, tmp_path: Path, build_qcow2: BuildQcow2, limits: ImageLimits
    ) -> None:
        """A raw disk passes inspection; then its owner puts a backing file into its start."""
        disk = tmp_path / "disk"
        disk.write_bytes(bytes(4 * MIB))
        evil = build_qcow2(backing_offset=512, backing_size=11, texts=((512, b"/etc/shadow"),))
        os.truncate(disk, 4 * MIB)

        class Swapping(ImageStore):
            def _check_room(self, what: str, source: object) -> None:
                with disk.open("r+b") as file:
                    file.write(evil)

        swapping = Swapping(store.directory)
        with pytest.raises(InputError, match="declared raw and is qcow2"):
            swapping.import_file(disk, "raw", limits)
        assert left_over(store) == []

    @pytest.mark.parametrize("change_bytes", [-512, 512])
    def test_file_that_grows_or_shrinks_during_the_copy(
        self, store: ImageStore, disk: Path, limits: ImageLimits, change_bytes: int
    ) -> None:
        def change(done: int, total: int) -> None:
            os.truncate(disk, 3 * MIB + change_bytes)

        with pytest.raises(InputError, match="changed while it was read"):
            store.import_file(disk, "raw", limits, change)
        assert left_over(store) == []

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
    def test_interrupted_copy_leaves_nothing(
        self, store: ImageStore, disk: Path, limits: ImageLimits, error: type[BaseException]
    ) -> None:
        def interrupt(done: int, total: int) -> None:
            if done > MIB:
                raise error

        with pytest.raises(error):
            store.import_file(disk, "raw", limits, interrupt)
        assert left_over(store) == []

    def test_killed_copy_leaves_nothing(self, store: ImageStore, disk: Path) -> None:
        code = """
            import os, signal, sys
            from pathlib import Path
            from appliance.images.inspect import ImageLimits
            from appliance.images.store import ImageStore

            def die(done, total):
                if done > 1 << 20:
                    os.kill(os.getpid(), signal.SIGKILL)

            store = ImageStore(Path(sys.argv[1]))
            store.import_file(Path(sys.argv[2]), "raw", ImageLimits(), die)
        """
        ended = run_python(code, str(store.directory), str(disk))
        assert ended.returncode == -signal.SIGKILL
        assert left_over(store) == []

    def test_file_size_limit_is_a_sentence(
        self, store: ImageStore, disk: Path, limits: ImageLimits
    ) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
        try:
            with pytest.raises(LimitExceeded, match="No room for image"):
                store.import_file(disk, "raw", limits)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert left_over(store) == []

    def test_unreadable_bytes_are_a_sentence(
        self,
        store: ImageStore,
        disk: Path,
        limits: ImageLimits,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(fd: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable, match="Input/output error"):
            store.import_file(disk, "raw", limits)
        assert left_over(store) == []


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.node
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
class TestFullDisk:
    """The store on a file system of 4 MiB, which only the child sees."""

    code = """
        import os, subprocess, sys
        from pathlib import Path
        from appliance.errors import LimitExceeded
        from appliance.images.inspect import ImageLimits
        from appliance.images.store import ImageStore
        from appliance.model import ImageRef

        root = Path(sys.argv[1])
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", root], check=True)
        store = ImageStore(root / "images")
        small = store.import_file(Path(sys.argv[2]), "raw", ImageLimits())

        def endless():
            while True:
                yield os.urandom(65536)

        ref = ImageRef(image_id="ami-2", sha256="0" * 64, format="raw", size_bytes=1 << 30)
        tries = [
            lambda: store.import_file(Path(sys.argv[3]), "raw", ImageLimits()),
            lambda: store.receive(ref, endless()),
        ]
        for attempt in tries:
            try:
                attempt()
            except LimitExceeded as error:
                print(error)
        store.verify(small.sha256)
        print(os.listdir(store.directory) == [small.sha256])
    """

    def test_full_disk_is_a_sentence_and_leaves_nothing(self, tmp_path: Path) -> None:
        mount = tmp_path / "mount"
        mount.mkdir()
        small, large = tmp_path / "small", tmp_path / "large"
        small.write_bytes(os.urandom(MIB))
        large.write_bytes(os.urandom(8 * MIB))
        ended = subprocess.run(
            [
                *("unshare", "--mount", sys.executable, "-c", textwrap.dedent(self.code)),
                *(str(mount), str(small), str(large)),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        early, midway, clean = ended.stdout.splitlines()
        assert early.startswith(f"No room for image {large} of 8 MiB")
        assert midway.startswith("No room for image ami-2 of 1,024 MiB")
        assert "No space left on device" in midway
        assert clean == "True"


class TestReceive:
    @pytest.fixture
    def content(self) -> bytes:
        return os.urandom(MIB)

    @pytest.fixture
    def ref(self, content: bytes) -> ImageRef:
        digest = hashlib.sha256(content).hexdigest()
        return ImageRef(image_id="ami-1", sha256=digest, format="raw", size_bytes=len(content))

    def test_right_bytes(self, store: ImageStore, content: bytes, ref: ImageRef) -> None:
        assert store.receive(ref, [content[:1000], content[1000:]]).read_bytes() == content
        assert store.receive(ref, [content]).read_bytes() == content

    def test_changed_short_and_endless_bytes(
        self, store: ImageStore, content: bytes, ref: ImageRef
    ) -> None:
        def endless() -> Iterator[bytes]:
            while True:
                yield content

        for wrong in ([b"\0" + content[1:]], [content[:-1]], [], endless()):
            with pytest.raises(Unavailable):
                store.receive(ref, wrong)
            assert left_over(store) == []


class TestKeeping:
    def test_digest_is_no_path(self, store: ImageStore, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("theirs")
        for name in ("../victim", str(victim), "", "." * 64, "A" * 64, "0" * 63 + "\n", "0" * 65):
            for act in (store.path, store.holds, store.verify, store.remove):
                with pytest.raises(InputError):
                    act(name)
        assert victim.read_text() == "theirs"

    def test_missing_image(self, store: ImageStore) -> None:
        assert not store.holds("0" * 64)
        assert not store.remove("0" * 64)
        with pytest.raises(NotFound):
            store.verify("0" * 64)

    def test_remove_and_list(self, store: ImageStore, disk: Path, limits: ImageLimits) -> None:
        image = store.import_file(disk, "raw", limits)
        (store.directory / "stray").touch()
        assert [file.sha256 for file in store.list()] == [image.sha256]
        assert store.holds(image.sha256)
        assert store.remove(image.sha256)
        assert store.list() == ()


STRACE_CODE = """
import sys
from pathlib import Path
from appliance.errors import InputError
from appliance.images.inspect import ImageLimits
from appliance.images.store import ImageStore

store = ImageStore(Path(sys.argv[1]))
for declared in ("qcow2", "raw"):
    try:
        store.import_file(Path(sys.argv[2]), declared, ImageLimits())
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
class TestNothingElseIsOpened:
    @pytest.mark.parametrize("kind", ["backing", "data file", "vmdk text"])
    def test_what_a_refused_image_names(
        self, tmp_path: Path, build_qcow2: BuildQcow2, kind: str
    ) -> None:
        secret = tmp_path / "secret"
        secret.write_text("shadow")
        name = str(secret).encode()
        content = {
            "backing": build_qcow2(
                backing_offset=512, backing_size=len(name), texts=((512, name),)
            ),
            "data file": build_qcow2(incompatible=4, extensions=((0x44415441, name),)),
            "vmdk text": b'version=1\nRW 1 FLAT "%s" 0\n'.ljust(4096) % name,
        }[kind]
        image = tmp_path / "stranger"
        image.write_bytes(content)
        trace = tmp_path / "trace"
        ended = subprocess.run(
            [
                *("strace", "-f", "-s", "4096", "-o", str(trace), "-e", "trace=%file,%process"),
                *(sys.executable, "-c", STRACE_CODE, str(tmp_path / "images"), str(image)),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("was refused") == 2
        calls = trace.read_text()
        assert str(image) in calls, "the trace shows nothing at all"
        assert str(secret) not in calls
        assert calls.count("execve(") == 1, "another program was started"
        assert os.listdir(tmp_path / "images") == []
