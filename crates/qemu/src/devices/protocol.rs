//! The messages between library and device process: one [`Start`] ahead of everything, with its
//! descriptors, and then [`Event`]s to the library.

use capsa_virtio::setup::DeviceSetup;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The first bytes of a [`Start`].
pub(super) const MAGIC: [u8; 8] = *b"capsadev";
/// The version of these messages; it follows the magic.
const VERSION: u32 = 1;

/// What the process is to run. Its descriptors, for each device in turn: the socket to QEMU, then
/// those that the device takes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) devices: Vec<DeviceSetup>,
}

/// What the process tells.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Event {
    /// A layer of confinement that this host lacks.
    Warning(String),
    /// Every device was made and waits for QEMU.
    Ready,
    /// A device could not be made, or cannot go on.
    Failed {
        /// Which, and why.
        reason: String,
    },
}

/// Why a message cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("a message of the device process's control socket cannot be read")]
    Malformed,
    #[error(
        "the device process speaks version {VERSION} of its protocol and the library version \
         {theirs}: give both the same version of capsa"
    )]
    Version { theirs: u32 },
}

pub(super) fn encode_start(start: &Start) -> Result<Vec<u8>, ProtocolError> {
    let mut message = MAGIC.to_vec();
    message.extend(VERSION.to_le_bytes());
    message.extend(encode(start)?);
    Ok(message)
}

pub(super) fn decode_start(message: &[u8]) -> Result<Start, ProtocolError> {
    let rest = message
        .strip_prefix(&MAGIC)
        .ok_or(ProtocolError::Malformed)?;
    let (version, body) = rest.split_first_chunk().ok_or(ProtocolError::Malformed)?;
    match u32::from_le_bytes(*version) {
        VERSION => decode(body),
        theirs => Err(ProtocolError::Version { theirs }),
    }
}

pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    postcard::to_stdvec(message).map_err(|_| ProtocolError::Malformed)
}

pub(super) fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, ProtocolError> {
    match postcard::take_from_bytes(message) {
        Ok((decoded, [])) => Ok(decoded),
        _ => Err(ProtocolError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_survives_the_way_and_its_truncations_are_refused() {
        let start = Start {
            devices: vec![DeviceSetup::Vsock { guest_cid: 3 }],
        };
        let message = encode_start(&start).unwrap();

        assert_eq!(decode_start(&message), Ok(start));
        for length in 0..message.len() {
            assert!(decode_start(&message[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn start_of_another_version_is_refused_by_number() {
        let mut message = encode_start(&Start {
            devices: Vec::new(),
        })
        .unwrap();
        message[MAGIC.len()] = 9;
        assert_eq!(
            decode_start(&message),
            Err(ProtocolError::Version { theirs: 9 })
        );
    }
}
