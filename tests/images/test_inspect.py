"""Inspection: what is harmless passes, everything else ends in one sentence."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import InputError
from appliance.images.inspect import ImageLimits, inspect, inspect_open, read_virtual_size

MIB = 1 << 20
BACKING_FORMAT = 0xE2792ACA
DATA_FILE = 0x44415441
ENCRYPTION = 0x0537BE77
BITMAPS = 0x23852875
FEATURE_NAMES = 0x6803F857

BuildQcow2 = Callable[..., bytes]
MakeImage = Callable[..., Path]


def refusal(path: Path, declared: str, limits: ImageLimits) -> str:
    with pytest.raises(InputError) as caught:
        inspect(path, declared, limits)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    """A function that writes bytes to a file."""

    def write(content: bytes) -> Path:
        path = tmp_path / "stranger.img"
        path.write_bytes(content)
        return path

    return write


class TestAccepted:
    @pytest.mark.parametrize(
        "options",
        [
            (),
            ("-o", "compat=0.10"),
            ("-o", "compression_type=zstd"),
            ("-o", "cluster_size=512"),
            ("-o", "cluster_size=2M"),
            ("-o", "lazy_refcounts=on"),
            ("-o", "refcount_bits=1"),
            ("-o", "preallocation=metadata"),
        ],
    )
    def test_qcow2_as_qemu_img_makes_it(
        self, make_image: MakeImage, limits: ImageLimits, options: tuple[str, ...]
    ) -> None:
        path = make_image("a.qcow2", "qcow2", "32M", *options)
        found = inspect(path, "qcow2", limits)
        assert found.format == "qcow2"
        assert found.virtual_size_bytes == 32 * MIB
        assert found.size_bytes == path.stat().st_size
        assert read_virtual_size(path, "qcow2") == 32 * MIB

    def test_built_header(
        self, write: Callable[[bytes], Path], build_qcow2: BuildQcow2, limits: ImageLimits
    ) -> None:
        names = ((FEATURE_NAMES, b"x" * 48),)
        found = inspect(write(build_qcow2(extensions=names)), "qcow2", limits)
        assert found.virtual_size_bytes == 64 * MIB

    def test_raw_with_partition_table_or_file_system(
        self, write: Callable[[bytes], Path], limits: ImageLimits
    ) -> None:
        mbr = bytearray(4 * MIB)
        mbr[446:462] = bytes.fromhex("800001000cfeffff0008000000080000")
        mbr[510:512] = b"\x55\xaa"
        protective = bytearray(mbr)
        protective[450] = 0xEE
        protective[512:520] = b"EFI PART"
        fat = bytearray(mbr)
        fat[:3], fat[0x10], fat[0x15] = b"\xeb\x3c\x90", 2, 0xF8
        ext4 = bytearray(MIB)
        ext4[1080:1082] = b"\x53\xef"
        for disk in (mbr, protective, fat, ext4, bytes(512)):
            found = inspect(write(bytes(disk)), "raw", limits)
            assert found.virtual_size_bytes == found.size_bytes == len(disk)

    @pytest.mark.parametrize(
        "content",
        [
            bytes(0x202) + b"HdrS" + bytes(100),
            b"\x7fELF",
            b"\x1f\x8b\x08",
            b"MZ",
            b"\x28\xb5\x2f\xfd",
        ],
    )
    def test_kernel(
        self, write: Callable[[bytes], Path], limits: ImageLimits, content: bytes
    ) -> None:
        assert inspect(write(content), "kernel", limits).virtual_size_bytes == 0

    def test_ramdisk_is_any_file(self, write: Callable[[bytes], Path], limits: ImageLimits) -> None:
        assert inspect(write(b"070701"), "ramdisk", limits).size_bytes == 6


class TestRefused:
    @pytest.mark.parametrize(
        ("hostile", "reason"),
        [
            (
                {"backing_offset": 512, "backing_size": 11, "texts": ((512, b"/etc/shadow"),)},
                "backing",
            ),
            ({"backing_offset": 1 << 40, "backing_size": 11}, "outside the header"),
            ({"backing_offset": 512, "backing_size": 1024}, "outside the header"),
            ({"backing_size": 11}, "backing file"),
            ({"extensions": ((BACKING_FORMAT, b"raw"),)}, "backing file"),
            ({"incompatible": 4}, "another file"),
            ({"extensions": ((DATA_FILE, b"/etc/shadow"),)}, "another file"),
            (
                {"incompatible": 4, "version": 3, "extensions": ((DATA_FILE, b"json:{}"),)},
                "another",
            ),
            ({"encryption": 1}, "encrypted"),
            ({"encryption": 2}, "encrypted"),
            ({"extensions": ((ENCRYPTION, bytes(16)),)}, "encrypted"),
            ({"extensions": ((BITMAPS, bytes(24)),)}, "bitmaps"),
            ({"autoclear": 1}, "bitmaps"),
            ({"autoclear": 1 << 63}, "optional"),
            ({"snapshots": 1, "snapshots_offset": 0x10000}, "snapshots"),
            ({"snapshots": 0xFFFFFFFF}, "snapshots"),
            ({"incompatible": 1}, "in use"),
            ({"incompatible": 2}, "corrupt"),
            ({"incompatible": 16}, "features 0x10"),
            ({"incompatible": 1 << 63}, "features"),
            ({"incompatible": 8}, "contradict"),
            ({"header_length": 112, "texts": ((104, b"\1"),)}, "contradict"),
            ({"header_length": 112, "incompatible": 8, "texts": ((104, b"\7"),)}, "compression"),
            ({"version": 1}, "version 1"),
            ({"version": 4}, "version 4"),
            ({"version": 0}, "version 0"),
            ({"cluster_bits": 8}, "2^8"),
            ({"cluster_bits": 22}, "2^22"),
            ({"cluster_bits": 63}, "2^63"),
            ({"cluster_bits": 0xFFFFFFFF}, "not possible"),
            ({"header_length": 72}, "header of 72"),
            ({"header_length": 105}, "header of 105"),
            ({"header_length": 0xFFFFFFF8}, "not possible"),
            ({"refcount_order": 7}, "2^7 bits"),
            ({"virtual_size": 0}, "no bytes"),
            ({"virtual_size": 100 << 40, "l1_entries": 1}, "L1"),
            ({"virtual_size": 100 << 40, "l1_entries": 204800, "file_bytes": 2 * MIB}, "limit"),
            ({"virtual_size": (1 << 64) - 1}, "L1"),
            ({"l1_entries": 0}, "L1 table"),
            ({"l1_entries": 0xFFFFFFFF}, "L1 table"),
            ({"l1_entries": 1 << 20}, "outside the file"),
            ({"l1_offset": 0}, "outside"),
            ({"l1_offset": 0x30008}, "outside"),
            ({"l1_offset": 1 << 63}, "outside"),
            ({"refcount_clusters": 0}, "refcount table"),
            ({"refcount_clusters": 0xFFFFFFFF}, "refcount table"),
            ({"refcount_offset": 0}, "refcount table"),
            ({"refcount_offset": 0xFFFFFFFFFFFF0000}, "refcount table"),
            ({"extensions": ((1, b"x"),) * 65}, "more than 64"),
            ({"texts": ((104, b"\0\0\0\1\xff\xff\xff\xff"),)}, "beyond the header"),
        ],
    )
    def test_qcow2_header(
        self,
        write: Callable[[bytes], Path],
        build_qcow2: BuildQcow2,
        limits: ImageLimits,
        hostile: dict[str, object],
        reason: str,
    ) -> None:
        text = refusal(write(build_qcow2(**hostile)), "qcow2", limits)
        assert reason in text
        assert "was refused" in text
        assert "\n" not in text

    @pytest.mark.parametrize("declared", ["qcow2", "raw"])
    @pytest.mark.parametrize("cut", range(104))
    def test_header_cut_at_each_byte(
        self,
        write: Callable[[bytes], Path],
        build_qcow2: BuildQcow2,
        limits: ImageLimits,
        cut: int,
        declared: str,
    ) -> None:
        assert "refused" in refusal(write(build_qcow2()[:cut]), declared, limits)

    @pytest.mark.parametrize("image_format", ["qcow2", "qcow", "vmdk", "vdi", "vhdx", "vpc", "qed"])
    def test_other_format_declared_raw(
        self, make_image: MakeImage, limits: ImageLimits, image_format: str
    ) -> None:
        path = make_image("other.img", image_format, "64M")
        with path.open("ab") as file:
            file.truncate(-(-path.stat().st_size // 512) * 512)
        assert "declared raw and is" in refusal(path, "raw", limits)

    @pytest.mark.parametrize("image_format", ["raw", "vmdk", "vdi", "vhdx", "vpc", "qed"])
    def test_other_format_declared_qcow2(
        self, make_image: MakeImage, limits: ImageLimits, image_format: str
    ) -> None:
        path = make_image("other.img", image_format, "64M")
        assert "declared qcow2 and is" in refusal(path, "qcow2", limits)

    @pytest.mark.parametrize(
        "text",
        [
            b'# Disk DescriptorFile\nversion=1\nRW 20480 FLAT "/etc/passwd" 0\n',
            b"# anything\n  \n#\nversion=1\n",
            b"\nVERSION = 1\n",
            b'createType="twoGbMaxExtentFlat"\n',
        ],
    )
    def test_vmdk_text_descriptor(
        self, write: Callable[[bytes], Path], limits: ImageLimits, text: bytes
    ) -> None:
        for padding in (b"\0", b" ", b"\n"):
            assert "vmdk" in refusal(write(text.ljust(4096, padding)), "raw", limits)

    def test_iso_and_its_hybrids(
        self, write: Callable[[bytes], Path], build_qcow2: BuildQcow2, limits: ImageLimits
    ) -> None:
        iso = bytearray(64 * 2048)
        iso[32768:32775] = b"\1CD001\1"
        assert "iso" in refusal(write(bytes(iso)), "raw", limits)
        iso[510:512] = b"\x55\xaa"
        assert "iso" in refusal(write(bytes(iso)), "raw", limits)
        hybrid = build_qcow2(texts=((32768, b"\1CD001\1"),))
        assert "iso" in refusal(write(hybrid), "qcow2", limits)

    def test_qcow2_that_is_a_partition_table_too(
        self, write: Callable[[bytes], Path], build_qcow2: BuildQcow2, limits: ImageLimits
    ) -> None:
        both = build_qcow2(texts=((510, b"\x55\xaa"),))
        assert "gpt" in refusal(write(both), "qcow2", limits)

    @pytest.mark.parametrize("magic", [b"LUKS\xba\xbe", b"COWD", b"WithoutFreeSpace"])
    def test_rarer_formats(
        self, write: Callable[[bytes], Path], limits: ImageLimits, magic: bytes
    ) -> None:
        assert "declared raw and is" in refusal(write(magic.ljust(MIB, b"\0")), "raw", limits)

    def test_packed_image_says_to_unpack(
        self, write: Callable[[bytes], Path], limits: ImageLimits
    ) -> None:
        for magic in (b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh91AY", bytes(257) + b"ustar"):
            assert "Unpack it first" in refusal(write(magic.ljust(1024, b"\0")), "raw", limits)

    def test_raw_of_broken_sectors(
        self, write: Callable[[bytes], Path], limits: ImageLimits
    ) -> None:
        assert "whole sectors" in refusal(write(bytes(513)), "raw", limits)

    @pytest.mark.parametrize("declared", ["raw", "qcow2", "kernel", "ramdisk"])
    def test_empty_file(
        self, write: Callable[[bytes], Path], limits: ImageLimits, declared: str
    ) -> None:
        assert "empty" in refusal(write(b""), declared, limits)

    def test_sizes_over_the_limits(self, tmp_path: Path, limits: ImageLimits) -> None:
        big = tmp_path / "big"
        big.touch()
        os.truncate(big, 65 * MIB)
        for declared in ("raw", "qcow2", "kernel", "ramdisk"):
            assert "over the limit" in refusal(big, declared, limits)

    def test_what_is_no_kernel(self, write: Callable[[bytes], Path], limits: ImageLimits) -> None:
        assert "not a Linux kernel" in refusal(write(b"#!/bin/sh\n"), "kernel", limits)

    def test_unknown_format_is_named(
        self, write: Callable[[bytes], Path], limits: ImageLimits
    ) -> None:
        assert "no image format 'vmdk'" in refusal(write(bytes(512)), "vmdk", limits)

    def test_what_is_no_regular_file(self, tmp_path: Path, limits: ImageLimits) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        for path in (fifo, tmp_path, Path("/dev/null"), Path("/dev/tty")):
            assert "not a regular file" in refusal(path, "raw", limits)
        assert "Could not open" in refusal(tmp_path / "missing", "raw", limits)
        assert "Could not open" in refusal(loop, "raw", limits)
        assert "Could not open" in refusal(tmp_path / "nul\0", "raw", limits)

    def test_link_of_the_user_is_followed(
        self, write: Callable[[bytes], Path], tmp_path: Path, limits: ImageLimits
    ) -> None:
        link = tmp_path / "link"
        link.symlink_to(write(bytes(512)))
        assert inspect(link, "raw", limits).size_bytes == 512


class TestFuzz:
    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        flips=st.lists(
            st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=12
        ),
        declared=st.sampled_from(["qcow2", "raw"]),
    )
    def test_flipped_bytes(
        self,
        tmp_path: Path,
        build_qcow2: BuildQcow2,
        limits: ImageLimits,
        flips: list[tuple[int, int]],
        declared: str,
    ) -> None:
        content = bytearray(build_qcow2())
        for offset, value in flips:
            content[offset] = value
        path = tmp_path / "flipped"
        path.write_bytes(content)
        try:
            accepted_bytes, text = inspect(path, declared, limits).virtual_size_bytes, ""
        except InputError as error:
            accepted_bytes, text = 0, str(error)
        assert "\n" not in text
        assert accepted_bytes <= limits.virtual_size_bytes

    def test_ten_thousand_files_in_bounded_memory_and_time(
        self, tmp_path: Path, build_qcow2: BuildQcow2
    ) -> None:
        """The child has 1 GiB of address space and 30 s of CPU, whatever it is fed."""
        (tmp_path / "base").write_bytes(build_qcow2())
        result = subprocess.run(
            [sys.executable, __file__, str(tmp_path / "base"), "10000"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        refused, accepted = map(int, result.stdout.split())
        assert refused + accepted == 10000
        assert refused > 5000


def fuzz_in_this_process(base: bytes, count: int) -> None:
    """Inspect mutations of a qcow2 file and of other formats' signatures under hard limits."""
    import resource
    import tempfile

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    chance = random.Random(20)
    limits = ImageLimits()
    magics = [
        b"KDMV",
        b"vhdxfile",
        b"# Disk DescriptorFile\n",
        b"QED\0",
        b"conectix",
        b"LUKS\xba\xbe",
    ]
    interesting = [b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, b"\x80" + bytes(7), b"\1" * 8]
    outcomes = [0, 0]
    with tempfile.TemporaryFile() as file:
        for number in range(count):
            content = bytearray(base[:4096])
            if number % 4 == 0:
                magic = chance.choice(magics)
                content[: len(magic)] = magic
            for _ in range(chance.randrange(1, 6)):
                at = chance.randrange(4, 136)
                piece = chance.choice([*interesting, chance.randbytes(8)])
                piece = piece[: chance.choice([1, 2, 4, 8])]
                content[at : at + len(piece)] = piece
            file.seek(0)
            file.truncate(0)
            file.write(content)
            file.truncate(chance.choice([len(base), 4096, chance.randrange(1, 4096)]))
            file.flush()
            file.seek(0)
            try:
                inspect_open(
                    io.BufferedReader(io.FileIO(file.fileno(), closefd=False)),
                    chance.choice(["qcow2", "qcow2", "raw"]),
                    limits,
                    "fuzz",
                )
                outcomes[1] += 1
            except InputError:
                outcomes[0] += 1
    sys.stdout.write(f"{outcomes[0]} {outcomes[1]}\n")


if __name__ == "__main__":
    fuzz_in_this_process(Path(sys.argv[1]).read_bytes(), int(sys.argv[2]))
