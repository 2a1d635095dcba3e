//! From files to a guest that is ready to run: kernel, initrd, command line and what tells the
//! kernel about them.
//!
//! Nothing here knows KVM. Every function works on any [`GuestMemoryBackend`] and takes whatever
//! bytes the files hold: a wrong file is an error, never a panic.

pub mod bzimage;
pub mod cmdline;
pub mod elf;
pub mod initrd;
pub mod mptable;
pub mod pvh;
pub mod tables;
pub mod zero_page;

use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

use super::error::{KernelError, MachineError};

/// A kernel or initrd file: anything that can be read from any position straight into guest memory.
pub trait Image: Read + Seek + ReadVolatile {}
impl<T: Read + Seek + ReadVolatile> Image for T {}

/// How the first instruction is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode, start info in EBX (Xen's PVH boot protocol).
    Pvh(u64),
    /// 64-bit mode, zero page in RSI (Linux boot protocol, 64-bit).
    Linux64(u64),
}

/// A kernel in guest memory, and what it wants from its loader.
#[derive(Debug, Clone)]
pub struct LoadedKernel {
    /// Where and how it starts.
    pub entry: Entry,
    /// First byte it uses.
    pub start: u64,
    /// First byte behind what it uses until it manages memory itself.
    pub end: u64,
    /// Longest command line it takes, in bytes, without the NUL.
    pub command_line_max: usize,
    /// Highest address any byte of the initrd may have.
    pub initrd_last: u64,
    /// A bzImage's setup header, to be handed back to it in the zero page.
    pub setup_header: Option<setup_header>,
    /// Whether its virtio-mmio driver finds devices by ACPI; `None` where that cannot be seen.
    pub finds_acpi_devices: Option<bool>,
}

/// Loads a kernel of either kind into the RAM below `low_bytes`.
///
/// # Errors
/// [`KernelError`] says what is wrong with the file, or how much memory it needs.
pub fn load_kernel<M, F>(
    memory: &M,
    low_bytes: u64,
    file: &mut F,
) -> Result<LoadedKernel, KernelError>
where
    M: GuestMemoryBackend,
    F: Image,
{
    let len = file.seek(SeekFrom::End(0)).map_err(KernelError::Read)?;
    if len == 0 {
        return Err(KernelError::Empty);
    }
    // Long enough for every magic number below.
    let mut head = [0u8; 0x206];
    let known = read_prefix(file, &mut head)?;
    let head = &head[..known];
    if head.starts_with(b"\x7fELF") {
        elf::load(memory, low_bytes, file, len)
    } else if head.get(0x202..0x206) == Some(b"HdrS") {
        bzimage::load(memory, low_bytes, file, len)
    } else if head.get(56..60) == Some(b"ARM\x64") {
        Err(KernelError::WrongArchitecture {
            found: "AArch64 (an `Image`)".into(),
        })
    } else if head.get(56..60) == Some(b"RSC\x05") {
        Err(KernelError::WrongArchitecture {
            found: "RISC-V (an `Image`)".into(),
        })
    } else {
        Err(KernelError::Unrecognised {
            found: describe(head),
        })
    }
}

fn describe(head: &[u8]) -> &'static str {
    const KNOWN: [(&[u8], &str); 7] = [
        (&[0x1f, 0x8b], "gzip data"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd data"),
        (b"\xfd7zXZ", "xz data"),
        (b"BZh", "bzip2 data"),
        (b"070701", "a cpio archive (an initrd, perhaps?)"),
        (b"MZ", "a PE executable without a Linux boot header"),
        (b"!<arch>", "an archive (a package, perhaps?)"),
    ];
    KNOWN
        .iter()
        .find(|(magic, _)| head.starts_with(magic))
        .map_or("of an unknown kind", |(_, name)| name)
}

/// Reads from the file's start until `buffer` is full or the file ends.
fn read_prefix<F: Image>(file: &mut F, buffer: &mut [u8]) -> Result<usize, KernelError> {
    file.rewind().map_err(KernelError::Read)?;
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(KernelError::Read(e)),
        }
    }
    Ok(filled)
}

/// Fills `buffer` from `offset`; the caller has checked that the file is long enough.
fn read_exact_at<F: Image>(
    file: &mut F,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), KernelError> {
    file.seek(SeekFrom::Start(offset))
        .map_err(KernelError::Read)?;
    file.read_exact(buffer).map_err(KernelError::Read)
}

/// Reads `len` bytes of the file at `offset` straight into guest memory.
fn load_range<M, F>(
    memory: &M,
    file: &mut F,
    offset: u64,
    address: u64,
    len: u64,
) -> Result<(), KernelError>
where
    M: GuestMemoryBackend,
    F: Image,
{
    file.seek(SeekFrom::Start(offset))
        .map_err(KernelError::Read)?;
    memory
        .read_exact_volatile_from(GuestAddress(address), file, len as usize)
        .map_err(|e| KernelError::Read(std::io::Error::other(e)))
}

/// Writes one boot structure.
pub(crate) fn write<M: GuestMemoryBackend>(
    memory: &M,
    what: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), MachineError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| MachineError::GuestWrite { what, source })
}

#[cfg(test)]
pub(crate) mod testing {
    use capsa_virtio::GuestRam;
    use vm_memory::GuestAddress;

    /// Guest memory of `mib` MiB from address 0.
    pub(crate) fn memory(mib: u64) -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), (mib << 20) as usize)]).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn load(bytes: &[u8]) -> KernelError {
        load_kernel(
            &testing::memory(32),
            32 << 20,
            &mut Cursor::new(bytes.to_vec()),
        )
        .unwrap_err()
    }

    #[test]
    fn kernel_empty_is_named_so() {
        assert!(matches!(load(b""), KernelError::Empty));
    }

    #[test]
    fn kernel_gzip_is_recognised_as_compressed() {
        let error = load(&[0x1f, 0x8b, 8, 0]);

        assert!(error.to_string().contains("gzip"), "{error}");
    }

    #[test]
    fn kernel_arm64_image_is_wrong_architecture() {
        let mut image = vec![0u8; 64];
        image[56..60].copy_from_slice(b"ARM\x64");

        assert!(matches!(
            load(&image),
            KernelError::WrongArchitecture { .. }
        ));
    }

    #[test]
    fn kernel_of_random_text_is_unrecognised() {
        assert!(matches!(
            load(b"hello, world"),
            KernelError::Unrecognised { .. }
        ));
    }
}
