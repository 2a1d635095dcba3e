//! Features and the configuration space (§5.2.3, §5.2.4).

/// `VIRTIO_BLK_F_SEG_MAX`.
const F_SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`.
const F_RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`.
const F_BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`.
pub(super) const F_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_TOPOLOGY`.
const F_TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_MQ`.
const F_MQ: u64 = 1 << 12;
/// `VIRTIO_BLK_F_DISCARD`.
const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Entries of each queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Data segments of one request: the header and the status take a descriptor each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors of one discard: 2 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Sectors of one write of zeroes: 1 GiB, which a file system does at once or the host in bounded time.
pub(super) const MAX_ZEROES_SECTORS: u32 = 1 << 21;
/// Ranges of one discard or write of zeroes.
pub(super) const MAX_RANGES: u32 = 32;

pub(super) fn features(read_only: bool, queues: u16) -> u64 {
    let mut features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
    features |= if read_only {
        F_RO
    } else {
        F_DISCARD | F_WRITE_ZEROES
    };
    if queues > 1 {
        features |= F_MQ;
    }
    features
}

/// The configuration space as bytes.
pub(super) fn bytes(capacity_sectors: u64, queues: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(60);
    bytes.extend(capacity_sectors.to_le_bytes());
    bytes.extend(0u32.to_le_bytes()); // size_max: not offered
    bytes.extend(SEG_MAX.to_le_bytes());
    bytes.extend([0; 4]); // geometry: not offered
    bytes.extend(512u32.to_le_bytes()); // blk_size: what the guest may address
    bytes.extend([3, 0]); // physical_block_exp: pages of the host are 8 of them; alignment_offset
    bytes.extend(8u16.to_le_bytes()); // min_io_size, in blocks
    bytes.extend(0u32.to_le_bytes()); // opt_io_size: none
    bytes.extend([0, 0]); // writeback: not offered; unused
    bytes.extend(queues.to_le_bytes());
    bytes.extend(MAX_DISCARD_SECTORS.to_le_bytes());
    bytes.extend(MAX_RANGES.to_le_bytes());
    bytes.extend(8u32.to_le_bytes()); // discard_sector_alignment
    bytes.extend(MAX_ZEROES_SECTORS.to_le_bytes());
    bytes.extend(MAX_RANGES.to_le_bytes());
    bytes.extend([1, 0, 0, 0]); // write_zeroes_may_unmap; unused
    bytes
}
