//! Telling what a file is that is no kernel we can boot, so that the message helps.

use super::InspectErrorKind;
use super::input::Bytes;

const GIVE_KERNEL: &str = "give a kernel: a vmlinux, a bzImage (vmlinuz) or an arm64 Image";
const DECOMPRESS: &str = "if a kernel is in it, decompress it and give the result";
const AS_INITRD: &str = "give it with --initrd, and a kernel here";
const AS_DISK: &str = "give it as a disk, and a kernel here";
const UNPACK: &str = "unpack it and give the vmlinuz that is in it";

struct Mark {
    offset: usize,
    bytes: &'static [u8],
    what: &'static str,
    fix: &'static str,
}

const fn mark(offset: usize, bytes: &'static [u8], what: &'static str, fix: &'static str) -> Mark {
    Mark {
        offset,
        bytes,
        what,
        fix,
    }
}

/// In order: the more telling mark first.
const MARKS: &[Mark] = &[
    mark(
        48,
        b"RISCV\0\0\0",
        "a kernel for RISC-V",
        "give a kernel for this machine's architecture",
    ),
    mark(
        4,
        b"zimg",
        "a self-extracting EFI kernel (zboot)",
        "build or unpack the plain `Image` (EFI_ZBOOT off) and give that",
    ),
    mark(0, b"\x1f\x8b", "a gzip archive", DECOMPRESS),
    mark(0, b"BZh", "a bzip2 archive", DECOMPRESS),
    mark(0, b"\xfd7zXZ\0", "an XZ archive", DECOMPRESS),
    mark(0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", DECOMPRESS),
    mark(0, b"\x04\x22\x4d\x18", "an LZ4 archive", DECOMPRESS),
    mark(0, b"\x02\x21\x4c\x18", "an LZ4 archive", DECOMPRESS),
    mark(0, b"070701", "an initramfs (cpio archive)", AS_INITRD),
    mark(0, b"070702", "an initramfs (cpio archive)", AS_INITRD),
    mark(0, b"PK\x03\x04", "a zip archive", UNPACK),
    mark(
        0,
        b"!<arch>\ndebian",
        "a Debian package",
        "unpack it with `dpkg -x` and give boot/vmlinuz-*",
    ),
    mark(0, b"\xed\xab\xee\xdb", "an RPM package", UNPACK),
    mark(257, b"ustar", "a tar archive", UNPACK),
    mark(0, b"QFI\xfb", "a qcow2 disk image", AS_DISK),
    mark(0, b"KDMV", "a VMDK disk image", AS_DISK),
    mark(0, b"hsqs", "a squashfs file system", AS_DISK),
    mark(0x400, b"\xe2\xe1\xf5\xe0", "an EROFS file system", AS_DISK),
    mark(
        0x438,
        b"\x53\xef",
        "an ext2, ext3 or ext4 file system",
        AS_DISK,
    ),
    mark(0x8001, b"CD001", "a CD image (ISO 9660)", AS_DISK),
    mark(0x200, b"EFI PART", "a disk image", AS_DISK),
    mark(
        0,
        b"\x27\x05\x19\x56",
        "a U-Boot image (uImage)",
        "give the kernel that it was made of",
    ),
    mark(
        0,
        b"\xd0\x0d\xfe\xed",
        "a device tree or FIT image",
        GIVE_KERNEL,
    ),
    mark(0, b"\xcf\xfa\xed\xfe", "a macOS program", GIVE_KERNEL),
    mark(0, b"\xca\xfe\xba\xbe", "a macOS program", GIVE_KERNEL),
    mark(0, b"#!", "a script", GIVE_KERNEL),
];

pub(super) fn recognise(head: &Bytes) -> InspectErrorKind {
    if let Some(found) = MARKS.iter().find(|mark| head.has(mark.offset, mark.bytes)) {
        return InspectErrorKind::NotAKernel {
            what: found.what,
            fix: found.fix,
        };
    }
    if head.has(0, b"MZ") {
        return windows_executable(head);
    }
    let (what, fix) = if head.has(0x1fe, &[0x55, 0xaa]) {
        ("a disk image", AS_DISK)
    } else if head.as_slice().iter().take(512).all(is_text) {
        ("a text file", GIVE_KERNEL)
    } else {
        ("a file of no known format", GIVE_KERNEL)
    };
    InspectErrorKind::NotAKernel { what, fix }
}

fn is_text(byte: &u8) -> bool {
    byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | b'\r' | b'\n') || *byte >= 0x80
}

/// A PE file that has neither Linux header: a unified kernel image holds a kernel in a section.
fn windows_executable(head: &Bytes) -> InspectErrorKind {
    let unified = head.as_slice().windows(8).any(|name| name == b".linux\0\0");
    if unified {
        return InspectErrorKind::NotAKernel {
            what: "a unified kernel image (UKI)",
            fix: "take the kernel out with `objcopy -O binary -j .linux FILE vmlinuz` and give that",
        };
    }
    InspectErrorKind::NotAKernel {
        what: "an EFI or Windows program",
        fix: GIVE_KERNEL,
    }
}
