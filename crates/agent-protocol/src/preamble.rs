//! The first bytes of each side of a connection.

use crate::{ProtocolError, VERSION};

/// The first bytes.
pub const MAGIC: [u8; 8] = *b"capsaagt";
/// Length of a preamble in bytes.
pub const BYTES: usize = MAGIC.len() + 4;

/// The preamble of this version.
pub const fn ours() -> [u8; BYTES] {
    let version = VERSION.to_le_bytes();
    let mut preamble = [0; BYTES];
    let (magic, rest) = preamble.split_at_mut(MAGIC.len());
    magic.copy_from_slice(&MAGIC);
    rest.copy_from_slice(&version);
    preamble
}

/// Checks the other side's.
///
/// # Errors
/// [`ProtocolError::Magic`] and [`ProtocolError::Version`].
pub fn check(theirs: &[u8; BYTES]) -> Result<(), ProtocolError> {
    let version = theirs.strip_prefix(&MAGIC).ok_or(ProtocolError::Magic)?;
    match version.first_chunk().copied().map(u32::from_le_bytes) {
        Some(VERSION) => Ok(()),
        Some(theirs) => Err(ProtocolError::Version { theirs }),
        None => Err(ProtocolError::Magic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preamble_of_this_version_is_accepted() {
        assert_eq!(check(&ours()), Ok(()));
    }

    #[test]
    fn preamble_of_another_version_is_refused_by_number() {
        let mut theirs = ours();
        theirs[MAGIC.len()] = 9;
        assert_eq!(check(&theirs), Err(ProtocolError::Version { theirs: 9 }));
    }

    #[test]
    fn preamble_without_magic_is_refused() {
        let mut theirs = ours();
        theirs[0] = b'x';
        assert_eq!(check(&theirs), Err(ProtocolError::Magic));
    }
}
