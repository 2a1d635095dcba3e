//! The message that a network's process is started with: what it is, its version, and the network's
//! configuration. The other end of the control client comes beside it.

use capsa_net::NetworkConfig;

/// The first bytes.
pub(crate) const MAGIC: &[u8; 8] = b"capsanet";
/// Both sides must have the same: they are the same executable unless the caller named another.
const VERSION: u32 = 1;

/// Why a message cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the network's configuration cannot be read")]
    Malformed,
    #[error(
        "the network's process speaks version {VERSION} and the library version {0}: give both the \
         same version of capsa"
    )]
    Version(u32),
}

/// The message for a network.
pub(crate) fn encode(config: &NetworkConfig) -> Result<Vec<u8>, MessageError> {
    let mut message = MAGIC.to_vec();
    message.extend_from_slice(&VERSION.to_le_bytes());
    postcard::to_extend(config, message).map_err(|_| MessageError::Malformed)
}

/// The network of a message.
pub(crate) fn decode(message: &[u8]) -> Result<NetworkConfig, MessageError> {
    let rest = message.strip_prefix(MAGIC).ok_or(MessageError::Malformed)?;
    let (version, body) = rest.split_first_chunk().ok_or(MessageError::Malformed)?;
    match u32::from_le_bytes(*version) {
        VERSION => postcard::from_bytes(body).map_err(|_| MessageError::Malformed),
        theirs => Err(MessageError::Version(theirs)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_as_it_was_written() {
        let config = NetworkConfig::new("test");

        assert_eq!(decode(&encode(&config).unwrap()), Ok(config));
    }

    #[test]
    fn other_bytes_and_other_versions_are_refused() {
        let mut message = encode(&NetworkConfig::new("test")).unwrap();
        message[MAGIC.len()] = 9;

        assert_eq!(decode(&message), Err(MessageError::Version(9)));
        for length in 0..MAGIC.len() + 4 {
            assert_eq!(decode(&message[..length]), Err(MessageError::Malformed));
        }
        assert_eq!(decode(b"capsavm\0more"), Err(MessageError::Malformed));
    }
}
