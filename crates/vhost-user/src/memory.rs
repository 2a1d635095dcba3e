//! The guest's memory as the front end describes it.

use std::fs::File;
use std::io;

use capsa_virtio::GuestRam;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap};

/// Why memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    #[error("a region of {size} bytes at {offset} is not within its file of {length} bytes")]
    Outside { size: u64, offset: u64, length: u64 },
    #[error(
        "the file of a region can shrink, which would end this process: it has to be a memfd with the seal F_SEAL_SHRINK"
    )]
    Unsealed,
    #[error("a region's addresses do not fit")]
    Address,
    #[error("regions overlap, or there are none")]
    Regions,
    #[error("cannot map a region: {0}")]
    Map(String),
    #[error("cannot look at the file of a region: {0}")]
    File(#[from] rustix::io::Errno),
}

impl From<MemoryError> for vhost::vhost_user::Error {
    fn from(error: MemoryError) -> Self {
        Self::ReqHandlerError(io::Error::other(error))
    }
}

/// Where the front end sees a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    user: u64,
    guest: u64,
    size: u64,
}

/// From the front end's addresses, in which it places the rings, to the guest's.
#[derive(Debug, Default)]
pub(crate) struct AddressTable(Vec<Place>);

impl AddressTable {
    /// The guest's address of what the front end has at `user`; `None` outside its regions.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        self.0.iter().find_map(|place| {
            let offset = user.checked_sub(place.user)?;
            // Lazily: beyond the region the sum may not fit.
            (offset < place.size).then(|| place.guest + offset)
        })
    }
}

/// Maps the regions, each from its file.
///
/// # Errors
/// [`MemoryError`]; nothing stays mapped.
pub(crate) fn map(
    regions: &[VhostUserMemoryRegion],
    files: Vec<File>,
) -> Result<(GuestRam, AddressTable), MemoryError> {
    let mut table = Vec::with_capacity(regions.len());
    let mut mapped = Vec::with_capacity(regions.len());
    for (region, file) in regions.iter().zip(files) {
        let (guest, size, user, offset) = (
            region.guest_phys_addr,
            region.memory_size,
            region.user_addr,
            region.mmap_offset,
        );
        check_file(&file, offset, size)?;
        user.checked_add(size).ok_or(MemoryError::Address)?;
        guest.checked_add(size).ok_or(MemoryError::Address)?;
        let length = usize::try_from(size).map_err(|_| MemoryError::Address)?;
        let mapping = GuestRegionMmap::from_range(
            GuestAddress(guest),
            length,
            Some(FileOffset::new(file, offset)),
        );
        mapped.push(mapping.map_err(|error| MemoryError::Map(error.to_string()))?);
        table.push(Place { user, guest, size });
    }
    mapped.sort_by_key(GuestMemoryRegion::start_addr);
    let ram = GuestRam::from_regions(mapped).map_err(|_| MemoryError::Regions)?;
    Ok((ram, AddressTable(table)))
}

/// A mapping of a file that shrinks kills who touches it.
fn check_file(file: &File, offset: u64, size: u64) -> Result<(), MemoryError> {
    let seals = fcntl_get_seals(file).map_err(|error| match error {
        rustix::io::Errno::INVAL => MemoryError::Unsealed,
        error => error.into(),
    })?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(MemoryError::Unsealed);
    }
    let length = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    match offset.checked_add(size) {
        Some(end) if size > 0 && end <= length => Ok(()),
        _ => Err(MemoryError::Outside {
            size,
            offset,
            length,
        }),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn memfd(length: u64, seals: SealFlags) -> File {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("guest", flags).unwrap());
        file.set_len(length).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    fn region(guest: u64, size: u64, user: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion {
            guest_phys_addr: guest,
            memory_size: size,
            user_addr: user,
            mmap_offset: offset,
        }
    }

    #[test]
    fn addresses_of_the_front_end_are_found_in_their_region_only() {
        let regions = [
            region(4 * MIB, MIB, 0x7000_0000, MIB),
            region(0, MIB, 0x6000_0000, 0),
        ];
        let files = vec![
            memfd(2 * MIB, SealFlags::SHRINK),
            memfd(MIB, SealFlags::SHRINK),
        ];

        let (_ram, table) = map(&regions, files).unwrap();

        assert_eq!(table.guest_address(0x7000_0010), Some(4 * MIB + 0x10));
        assert_eq!(table.guest_address(0x6000_0000), Some(0));
        assert_eq!(table.guest_address(0x6000_0000 + MIB), None);
        assert_eq!(table.guest_address(0x5fff_ffff), None);
        assert_eq!(table.guest_address(u64::MAX), None);
    }

    #[test]
    fn address_far_beyond_a_region_at_the_end_of_all_is_in_none() {
        let last = region(u64::MAX - 2 * MIB, MIB, 0, 0);

        let (_ram, table) = map(&[last], vec![memfd(MIB, SealFlags::SHRINK)]).unwrap();

        assert_eq!(table.guest_address(u64::MAX), None);
    }

    #[test]
    fn file_that_can_shrink_is_refused() {
        let unsealed = map(&[region(0, MIB, 0, 0)], vec![memfd(MIB, SealFlags::GROW)]);
        let no_memfd = map(
            &[region(0, MIB, 0, 0)],
            vec![File::open("/dev/zero").unwrap()],
        );

        assert!(matches!(unsealed, Err(MemoryError::Unsealed)));
        assert!(matches!(no_memfd, Err(MemoryError::Unsealed)));
    }

    #[test]
    fn region_beyond_its_file_or_the_address_space_is_refused() {
        for bad in [
            region(0, 2 * MIB, 0, 0),
            region(0, MIB, 0, 4096),
            region(0, MIB, 0, u64::MAX - 4095),
            region(0, 0, 0, 0),
            region(u64::MAX - 4095, MIB, 0, 0),
            region(0, MIB, u64::MAX - 4095, 0),
        ] {
            assert!(map(&[bad], vec![memfd(MIB, SealFlags::SHRINK)]).is_err());
        }
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let regions = [region(0, MIB, 0, 0), region(MIB / 2, MIB, 8 * MIB, 0)];
        let files = vec![memfd(MIB, SealFlags::SHRINK), memfd(MIB, SealFlags::SHRINK)];

        assert!(matches!(map(&regions, files), Err(MemoryError::Regions)));
    }
}
