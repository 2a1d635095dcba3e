//! Features, addresses and limits.

/// `VIRTIO_VSOCK_F_STREAM`.
pub(super) const F_STREAM: u64 = 1;

/// The host's address.
pub const HOST_CID: u64 = 2;
/// The lowest address that a guest may have.
pub const MIN_GUEST_CID: u64 = 3;

/// Most connections at once. Further ones are refused.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Most replies without a connection that wait for the guest's buffers. No request is read beyond that.
pub(super) const MAX_REPLIES: usize = 1024;

/// Memory for what host programs have not read yet: of one connection, and of all. A connection made when little is left
/// gets less, but never less than a page.
pub(super) const BUFFER: u32 = 256 << 10;
pub(super) const MIN_BUFFER: u32 = 4 << 10;
pub(super) const ALL_BUFFERS: u64 = 128 << 20;

/// The first port given to connections from the host.
pub(super) const FIRST_EPHEMERAL: u32 = 1 << 30;
