//! The disks, as the library's requests see them: counted from 0 in the order in which they were added.

use capsa_virtio::block::{BlockHandle, GrowError};
use capsa_virtio::setup::DeviceControl;

use crate::disk_refusal::DiskRefusal;

/// Makes a disk larger, and tells the guest. Gives its size in bytes.
pub(super) fn grow(
    controls: &[DeviceControl],
    index: usize,
    bytes: u64,
) -> Result<u64, DiskRefusal> {
    let grown = find(controls, index)?.grow(bytes);
    grown.map(|()| bytes).map_err(|error| match error {
        GrowError::ReadOnly => DiskRefusal::ReadOnly,
        GrowError::Smaller(present) => DiskRefusal::Smaller { present },
        GrowError::NotSectors(_) => DiskRefusal::NotSectors,
        GrowError::BlockDevice => DiskRefusal::BlockDevice,
        other => DiskRefusal::Host(other.to_string()),
    })
}

/// Looks whether somebody else has changed a disk's size, and tells the guest. Gives it in bytes.
pub(super) fn refresh(controls: &[DeviceControl], index: usize) -> Result<u64, DiskRefusal> {
    let size = find(controls, index)?.refresh_size();
    size.map_err(|error| DiskRefusal::Host(error.to_string()))
}

fn find(controls: &[DeviceControl], index: usize) -> Result<&BlockHandle, DiskRefusal> {
    let disks = || {
        controls.iter().filter_map(|control| match control {
            DeviceControl::Block(disk) => Some(disk),
            _ => None,
        })
    };
    let absent = || DiskRefusal::Absent {
        disks: disks().count(),
    };
    disks().nth(index).ok_or_else(absent)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use capsa_virtio::block::backend::RawDisk;
    use capsa_virtio::block::{Block, BlockOptions};

    use super::*;

    fn disk(bytes: u64, read_only: bool) -> (File, DeviceControl) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let backend = RawDisk::new(file.try_clone().unwrap(), read_only).unwrap();
        let (_, handle) = Block::new(Arc::new(backend), BlockOptions::default()).unwrap();
        (file, DeviceControl::Block(handle))
    }

    fn size(file: &File) -> u64 {
        file.metadata().unwrap().len()
    }

    #[test]
    fn disks_are_counted_among_other_devices() {
        let (first, first_control) = disk(1024, false);
        let (second, second_control) = disk(2048, false);
        let none = || DeviceControl::None;
        let controls = [none(), first_control, none(), second_control, none()];

        assert_eq!(grow(&controls, 1, 4096), Ok(4096));
        assert_eq!((size(&first), size(&second)), (1024, 4096));
        first.set_len(8192).unwrap();
        assert_eq!(refresh(&controls, 0), Ok(8192));
        assert_eq!(refresh(&controls, 1), Ok(4096));
        let absent = Err(DiskRefusal::Absent { disks: 2 });
        assert_eq!(grow(&controls, 2, 4096), absent);
        assert_eq!(refresh(&controls, usize::MAX), absent);
    }

    #[test]
    fn refusals_say_why_and_change_nothing() {
        let (writable, control) = disk(1024, false);
        let (read_only, read_only_control) = disk(1024, true);
        let controls = [control, read_only_control];

        let smaller = DiskRefusal::Smaller { present: 1024 };
        assert_eq!(grow(&controls, 0, 512), Err(smaller));
        assert_eq!(grow(&controls, 0, 1025), Err(DiskRefusal::NotSectors));
        assert_eq!(grow(&controls, 1, 2048), Err(DiskRefusal::ReadOnly));
        // Beyond what a file can have.
        let refused = grow(&controls, 0, u64::MAX / 512 * 512);
        assert!(matches!(refused, Err(DiskRefusal::Host(_))), "{refused:?}");
        assert_eq!((size(&writable), size(&read_only)), (1024, 1024));
        assert_eq!(refresh(&controls, 0), Ok(1024));
    }
}
