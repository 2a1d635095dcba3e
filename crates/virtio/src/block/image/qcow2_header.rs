//! The part of a qcow2 header that decides whether, and with which other files, an image can be opened.

/// Most of a header that is looked at: names lie in the first cluster, which is 64 KiB unless somebody wished otherwise.
pub(super) const HEADER_BYTES: usize = 64 << 10;

const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Dirty (0), corrupt (1), external data (2), compression type (3), extended L2 entries (4).
const INCOMPATIBLE_KNOWN: u64 = 0b1_1111;
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// Bytes of one feature's name.
const FEATURE_NAME: usize = 48;
const MAX_NAME: usize = 1023;

/// What a qcow2 header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// Bytes of the disk.
    pub size: u64,
    /// The backing file's name.
    pub backing: Option<String>,
    /// The backing file's format, as the image names it.
    pub backing_format: Option<String>,
    /// Whether the data is encrypted.
    pub encrypted: bool,
    /// Whether the data is in another file.
    pub external_data: bool,
}

impl Qcow2Header {
    /// Reads a header from the first bytes of an image.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(start: &[u8]) -> Result<Self, &'static str> {
        if start.get(..4) != Some(&super::probe::QCOW_MAGIC) {
            return Err("it does not begin with the qcow2 magic number");
        }
        let version = be32(start, 4)?;
        let cluster_bits = be32(start, 20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err("the cluster size is not between 512 bytes and 2 MiB");
        }
        let (incompatible, header_length) = match version {
            2 => (0, V2_LENGTH),
            3 => (be64(start, 72)?, be32(start, 100)? as usize),
            _ => return Err("the version is neither 2 nor 3"),
        };
        if version == 3 && (header_length < V3_LENGTH || !header_length.is_multiple_of(8)) {
            return Err("the header's length is wrong");
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err("it is marked as corrupt; try `qemu-img check -r all`");
        }
        if incompatible & !INCOMPATIBLE_KNOWN != 0 {
            return Err("it uses a feature that is not known here");
        }
        if incompatible & INCOMPATIBLE_COMPRESSION != 0 && start.get(104) != Some(&0) {
            return Err("it is compressed by a method other than deflate");
        }
        let size = be64(start, 24)?;
        let entry = if incompatible & INCOMPATIBLE_EXTENDED_L2 != 0 {
            16
        } else {
            8
        };
        let cluster = 1u128 << cluster_bits;
        if u128::from(size) > u128::from(be32(start, 36)?) * cluster * (cluster / entry) {
            return Err("the disk is larger than its tables");
        }
        Ok(Self {
            size,
            backing: backing_name(start)?,
            backing_format: backing_format(start, header_length)?,
            encrypted: be32(start, 32)? != 0,
            external_data: incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0,
        })
    }
}

fn backing_name(start: &[u8]) -> Result<Option<String>, &'static str> {
    let (offset, len) = (be64(start, 8)?, be32(start, 16)? as usize);
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    if len > MAX_NAME {
        return Err("the backing file's name is too long");
    }
    let outside = "the backing file's name is outside the header";
    let offset = usize::try_from(offset).map_err(|_| outside)?;
    let name = start
        .get(offset..)
        .and_then(|rest| rest.get(..len))
        .ok_or(outside)?;
    let name = String::from_utf8(name.to_vec());
    name.map(Some)
        .map_err(|_| "the backing file's name is not UTF-8")
}

/// Walks over the header's extensions; gives the backing format's name.
fn backing_format(start: &[u8], header_length: usize) -> Result<Option<String>, &'static str> {
    let mut at = header_length;
    let mut name = None;
    loop {
        let (Ok(kind), Ok(len)) = (be32(start, at), be32(start, at + 4)) else {
            // An image without extensions may be cut off here. Those that nobody has looked at are not for others to read.
            return match start.len() < HEADER_BYTES {
                true => Ok(name),
                false => Err("its header's extensions are longer than 64 KiB"),
            };
        };
        let len = len as usize;
        match kind {
            EXTENSION_END => return Ok(name),
            EXTENSION_BACKING_FORMAT => {
                let broken = "the backing format's name is broken";
                let bytes = start
                    .get(at + 8..)
                    .and_then(|rest| rest.get(..len))
                    .ok_or(broken)?;
                name = Some(String::from_utf8(bytes.to_vec()).map_err(|_| broken)?);
            }
            // imago 0.2.6 panics at the rest.
            EXTENSION_FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME) => {
                return Err("its table of feature names has a wrong length");
            }
            _ => {}
        }
        // Each step goes on by 8 bytes at least, inside what was read.
        at = at.saturating_add(8).saturating_add(len.next_multiple_of(8));
    }
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, &'static str> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field
        .copied()
        .map(u32::from_be_bytes)
        .ok_or("the header is cut off")
}

fn be64(bytes: &[u8], at: usize) -> Result<u64, &'static str> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field
        .copied()
        .map(u64::from_be_bytes)
        .ok_or("the header is cut off")
}
