//! The kernel command line.

use std::fmt::Write as _;

use vm_memory::GuestMemoryBackend;

use super::write;
use crate::machine::error::{CommandLineError, MachineError};
use crate::machine::layout;

/// A virtio-mmio window as the kernel parameter `virtio_mmio.device=` describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioWindow {
    /// Guest-physical address of the registers.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
    /// Global interrupt number (IOAPIC pin).
    pub irq: u32,
}

/// Appends the device list to a command line.
///
/// It goes before a ` -- `, behind which everything belongs to init.
pub fn with_devices(command_line: &str, windows: &[MmioWindow]) -> String {
    let mut list = String::new();
    for w in windows {
        // Writing to a String cannot fail.
        let _ = write!(
            list,
            " virtio_mmio.device={}K@{:#x}:{}",
            w.size >> 10,
            w.address,
            w.irq
        );
    }
    let (kernel, init) = match find_separator(command_line) {
        Some(at) => command_line.split_at(at),
        None => (command_line, ""),
    };
    let kernel = kernel.trim();
    let list = list.trim_start();
    let space = if kernel.is_empty() || list.is_empty() {
        ""
    } else {
        " "
    };
    format!("{kernel}{space}{list}{init}")
}

/// Offset of the space before a `--` that stands alone.
fn find_separator(command_line: &str) -> Option<usize> {
    command_line
        .match_indices(" --")
        .map(|(at, _)| at)
        .find(|at| matches!(command_line.as_bytes().get(at + 3), None | Some(b' ')))
}

/// Whether the command line turns ACPI off.
pub fn disables_acpi(command_line: &str) -> bool {
    let kernel = find_separator(command_line).map_or(command_line, |at| &command_line[..at]);
    kernel
        .split_ascii_whitespace()
        .any(|word| word == "acpi=off")
}

/// Checks a command line against what a kernel takes.
///
/// # Errors
/// [`CommandLineError`] says which limit it breaks.
pub fn check(command_line: &str, max: usize) -> Result<(), CommandLineError> {
    if let Some(position) = command_line
        .bytes()
        .position(|b| b.is_ascii_control() && b != b'\t')
    {
        return Err(CommandLineError::ControlCharacter { position });
    }
    let max = max.min(layout::COMMAND_LINE_ROOM as usize - 1);
    if command_line.len() > max {
        return Err(CommandLineError::TooLong {
            len: command_line.len(),
            max,
        });
    }
    Ok(())
}

/// Checks the command line and writes it with its NUL.
///
/// # Errors
/// See [`check`].
pub fn write_command_line<M: GuestMemoryBackend>(
    memory: &M,
    command_line: &str,
    max: usize,
) -> Result<(), MachineError> {
    check(command_line, max)?;
    write(
        memory,
        "command line",
        layout::COMMAND_LINE,
        command_line.as_bytes(),
    )?;
    write(
        memory,
        "command line",
        layout::COMMAND_LINE + command_line.len() as u64,
        &[0],
    )
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::boot::testing::memory;

    const WINDOWS: [MmioWindow; 2] = [
        MmioWindow {
            address: 0xd000_0000,
            size: 4096,
            irq: 5,
        },
        MmioWindow {
            address: 0xd000_1000,
            size: 4096,
            irq: 6,
        },
    ];
    const LIST: &str = "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6";

    #[test]
    fn devices_are_appended() {
        assert_eq!(with_devices("quiet", &WINDOWS), format!("quiet {LIST}"));
    }

    #[test]
    fn devices_make_up_an_empty_line() {
        assert_eq!(with_devices("", &WINDOWS), LIST);
    }

    #[test]
    fn devices_go_before_the_arguments_of_init() {
        assert_eq!(
            with_devices("quiet -- --verbose", &WINDOWS),
            format!("quiet {LIST} -- --verbose")
        );
        assert_eq!(with_devices("a=--b c", &WINDOWS), format!("a=--b c {LIST}"));
    }

    #[test]
    fn no_devices_leave_the_line_as_it_is() {
        assert_eq!(with_devices("quiet -- x", &[]), "quiet -- x");
    }

    #[test]
    fn acpi_off_is_seen_only_as_a_kernel_parameter_of_its_own() {
        assert!(disables_acpi("quiet acpi=off"));
        assert!(!disables_acpi("quiet noacpi=off acpi=offset"));
        assert!(!disables_acpi("quiet -- acpi=off"));
    }

    #[test]
    fn line_at_the_limit_is_written_with_its_nul() {
        let memory = memory(32);
        let line = "x".repeat(2047);
        memory
            .write_obj(0xffu8, GuestAddress(layout::COMMAND_LINE + 2047))
            .unwrap();

        write_command_line(&memory, &line, 2047).unwrap();

        let nul: u8 = memory
            .read_obj(GuestAddress(layout::COMMAND_LINE + 2047))
            .unwrap();
        assert_eq!(nul, 0);
    }

    #[test]
    fn line_beyond_the_limit_is_too_long() {
        assert_eq!(
            check(&"x".repeat(2048), 2047),
            Err(CommandLineError::TooLong {
                len: 2048,
                max: 2047
            })
        );
    }

    #[test]
    fn line_with_a_newline_or_nul_is_refused() {
        assert_eq!(
            check("quiet\nro", 2047),
            Err(CommandLineError::ControlCharacter { position: 5 })
        );
        assert_eq!(
            check("\0", 2047),
            Err(CommandLineError::ControlCharacter { position: 0 })
        );
    }

    #[test]
    fn limit_that_a_corrupt_header_gives_is_bounded_by_our_room() {
        assert!(check(&"x".repeat(70_000), usize::MAX).is_err());
    }
}
