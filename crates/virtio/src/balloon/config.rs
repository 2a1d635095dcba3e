//! Features, queues and the configuration space.

/// `VIRTIO_BALLOON_F_STATS_VQ`
pub(super) const F_STATISTICS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: a guest short of memory takes pages back by itself.
pub(super) const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`
pub(super) const F_REPORTING: u64 = 1 << 5;

/// Where the guest writes how many pages it has given.
pub(super) const ACTUAL_OFFSET: u64 = 4;
/// Bytes of a page of the protocol, whatever the guest's own pages are.
pub(super) const PAGE: u64 = 4096;
/// Most pages named in one request. Linux names 256.
pub(super) const MAX_PAGES: u64 = 1 << 16;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

/// The role of queue `index`. The optional queues move up where one before them was not negotiated, as Linux has it.
pub(super) fn role(index: u16, features: u64) -> Option<Role> {
    let optional = [
        (F_STATISTICS, Role::Statistics),
        (F_REPORTING, Role::Reporting),
    ];
    let optional = optional
        .into_iter()
        .filter(|(bit, _)| features & bit != 0)
        .map(|(_, role)| role);
    [Role::Inflate, Role::Deflate]
        .into_iter()
        .chain(optional)
        .nth(index.into())
}

/// The configuration space: `num_pages` wanted, `actual` given.
pub(super) fn bytes(wanted: u32, actual: u32) -> [u8; 8] {
    (u64::from(actual) << 32 | u64::from(wanted)).to_le_bytes()
}
