/// The version of the messages. Library and daemon must have the same.
pub const VERSION: u32 = 1;
/// The length of a [`Hello`].
pub const HELLO_BYTES: usize = 12;

const MAGIC: [u8; 8] = *b"capsavzd";

/// The first thing that each side sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's version of the messages.
    pub version: u32,
}

/// Why the other side cannot be talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// It does not speak this protocol at all.
    #[error("what answered is not capsa-vzd; check the path of the daemon")]
    Stranger,
    /// It speaks another version.
    #[error(
        "capsa-vzd and the library have different versions of their protocol ({theirs} on the other \
         side, {VERSION} on this one): install both from the same version of capsa"
    )]
    Version {
        /// The other side's version.
        theirs: u32,
    },
}

impl Hello {
    /// This side's.
    pub const OURS: Self = Self { version: VERSION };

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..].copy_from_slice(&self.version.to_le_bytes());
        bytes
    }

    /// Reads the other side's and checks that it can be talked to.
    ///
    /// # Errors
    /// [`HelloError`].
    pub fn check(bytes: [u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        let [a, b, c, d, e, f, g, h, version @ ..] = bytes;
        if [a, b, c, d, e, f, g, h] != MAGIC {
            return Err(HelloError::Stranger);
        }
        match u32::from_le_bytes(version) {
            VERSION => Ok(Self::OURS),
            theirs => Err(HelloError::Version { theirs }),
        }
    }
}
