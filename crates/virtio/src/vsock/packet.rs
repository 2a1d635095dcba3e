//! The packet header (§5.10.6).

/// Bytes of a header.
pub(super) const HEADER: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`
pub(super) const TYPE_STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Ends or refuses one.
    Reset = 3,
    /// Announces that no more is sent, received, or both.
    Shutdown = 4,
    /// Carries data.
    ReadWrite = 5,
    /// Tells the buffer space.
    CreditUpdate = 6,
    /// Asks for it.
    CreditRequest = 7,
}

impl Op {
    fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Address of the sender.
    pub src_cid: u64,
    /// Address of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data after the header.
    pub len: u32,
    /// Kind of socket: 1 is a stream.
    pub kind: u16,
    /// What it is for; `None` if unknown.
    pub op: Option<Op>,
    /// Of a shutdown: what ends.
    pub flags: u32,
    /// Bytes of buffer that the sender of the packet has for this connection.
    pub buf_alloc: u32,
    /// Bytes that it has taken out of it so far (wrapping).
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header; every pattern of bits is one.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let mut rest = &bytes[..];
        let mut take = |count: usize| {
            let (field, later) = rest.split_at_checked(count).unwrap_or_default();
            rest = later;
            field
                .iter()
                .rev()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        Self {
            src_cid: take(8),
            dst_cid: take(8),
            src_port: take(4) as u32,
            dst_port: take(4) as u32,
            len: take(4) as u32,
            kind: take(2) as u16,
            op: Op::from_number(take(2) as u16),
            flags: take(4) as u32,
            buf_alloc: take(4) as u32,
            fwd_cnt: take(4) as u32,
        }
    }

    /// Writes the header down. An unknown operation becomes 0, which is invalid.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let op = self.op.map_or(0, |op| op as u16);
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER];
        bytes
            .iter_mut()
            .zip(fields.into_iter().flatten())
            .for_each(|(to, from)| *to = *from);
        bytes
    }
}
