//! The messages between library and monitor, over a `SOCK_SEQPACKET` socket: one message a packet,
//! descriptors beside it.
//!
//! The library sends one [`Start`] with the machine's descriptors, before the monitor even runs, and
//! then [`Request`]s; the monitor sends [`Event`]s. A `Start` begins with [`MAGIC`] and the version
//! in fixed places, so that the two sides can tell each other's version whatever else changes.
//! Everything else is postcard-encoded. Decoding accepts any bytes: it fails, and never panics or
//! allocates more than a small multiple of the message.

use capsa_core::MemoryReport;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::disk_refusal::DiskRefusal;
use crate::machine::{MachineConfig, MachineEnd};

/// The version of these messages. Both sides must have the same: they are the same executable
/// unless the caller named another.
pub const VERSION: u32 = 2;
/// The first bytes of a [`Start`] message.
pub const MAGIC: [u8; 8] = *b"capsavm\0";
/// The longest message in bytes.
pub const MAX_MESSAGE_BYTES: usize = capsa_process::MAX_MESSAGE_BYTES;

/// What the library asks for first. Its descriptors, in this order: `/dev/kvm`, the kernel, the
/// initramfs where there is one, the serial port's socket where there is one, and those of each
/// device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The machine.
    pub machine: MachineConfig,
    /// Whether an initramfs is among the descriptors.
    pub initramfs: bool,
    /// Whether a missing layer of confinement is an error.
    pub strict: bool,
}

/// What the library asks for later. Each is answered by an event with its number, an [`Event::Done`]
/// unless the command says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the library.
    pub number: u32,
    /// What is to be done.
    pub command: Command,
}

/// What a running monitor can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Press the power button.
    PowerButton,
    /// Hold every vCPU.
    Pause,
    /// Let them go on.
    Resume,
    /// Ask the guest to give so many bytes to the host.
    SetBalloonTarget(u64),
    /// Ask for what the guest tells of its memory: the answer is an [`Event::Memory`], or an
    /// [`Event::Done`] with the error.
    ReportMemory,
    /// Make a disk larger, and tell the guest: the answer is an [`Event::DiskSize`].
    GrowDisk {
        /// Which, counted from 0 in the order of the configuration.
        disk: usize,
        /// How many bytes it is to have.
        bytes: u64,
    },
    /// Look whether somebody else has changed the size of a disk's file, and tell the guest: the
    /// answer is an [`Event::DiskSize`].
    RefreshDisk {
        /// Which, counted in the same way.
        disk: usize,
    },
}

/// What the monitor tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Something the user should know, such as a layer of confinement that this host lacks.
    Warning(String),
    /// The vCPUs run.
    Running,
    /// The start failed; nothing of the guest has run, and the monitor ends.
    Failed(Failure),
    /// The answer to a request.
    Done {
        /// The request's number.
        number: u32,
        /// Why it could not be carried out; `None` where it was.
        error: Option<String>,
    },
    /// The answer to [`Command::ReportMemory`].
    Memory {
        /// The request's number.
        number: u32,
        /// What the guest tells.
        report: MemoryReport,
    },
    /// The guest ended, and the monitor ends too.
    Ended(MachineEnd),
    /// The answer to [`Command::GrowDisk`] and [`Command::RefreshDisk`].
    DiskSize {
        /// The request's number.
        number: u32,
        /// How many bytes the disk has, or why that was not changed.
        result: Result<u64, DiskRefusal>,
    },
}

/// Why a start failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What happened, naming the setting or the step.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

/// Why a message cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// It is not one of these messages.
    #[error("a message of the control socket cannot be read")]
    Malformed,
    /// The other side has another version.
    #[error(
        "the monitor speaks version {VERSION} of the control protocol and the library version \
         {theirs}: give both the same version of capsa"
    )]
    Version {
        /// The other side's.
        theirs: u32,
    },
    /// It does not fit.
    #[error("a message of {0} bytes is too long for the control socket")]
    TooLong(usize),
}

/// Encodes a [`Start`].
///
/// # Errors
/// [`ProtocolError::TooLong`].
pub fn encode_start(start: &Start) -> Result<Vec<u8>, ProtocolError> {
    let mut message = MAGIC.to_vec();
    message.extend_from_slice(&VERSION.to_le_bytes());
    message.extend(encode(start)?);
    check_length(message)
}

/// Decodes a [`Start`].
///
/// # Errors
/// [`ProtocolError::Version`] where the other side has another version.
pub fn decode_start(message: &[u8]) -> Result<Start, ProtocolError> {
    let rest = message
        .strip_prefix(&MAGIC)
        .ok_or(ProtocolError::Malformed)?;
    let (version, body) = rest.split_first_chunk().ok_or(ProtocolError::Malformed)?;
    match u32::from_le_bytes(*version) {
        VERSION => decode(body),
        theirs => Err(ProtocolError::Version { theirs }),
    }
}

/// Encodes a [`Request`] or an [`Event`].
///
/// # Errors
/// [`ProtocolError::TooLong`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    check_length(postcard::to_stdvec(message).map_err(|_| ProtocolError::Malformed)?)
}

/// Decodes a [`Request`] or an [`Event`].
///
/// # Errors
/// [`ProtocolError::Malformed`], for bytes left over too.
pub fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, ProtocolError> {
    match postcard::take_from_bytes(message) {
        Ok((decoded, [])) => Ok(decoded),
        _ => Err(ProtocolError::Malformed),
    }
}

fn check_length(message: Vec<u8>) -> Result<Vec<u8>, ProtocolError> {
    match message.len() {
        0..=MAX_MESSAGE_BYTES => Ok(message),
        length => Err(ProtocolError::TooLong(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{DeviceConfig, DeviceDiscovery};
    use proptest::prelude::*;

    fn start() -> Start {
        Start {
            machine: MachineConfig {
                vcpus: 2,
                memory: 128 << 20,
                command_line: "console=ttyS0".to_owned(),
                discovery: DeviceDiscovery::Auto,
                serial: true,
                devices: vec![DeviceConfig::Console, DeviceConfig::Rng],
            },
            initramfs: true,
            strict: false,
        }
    }

    #[test]
    fn a_start_survives_the_way() {
        let message = encode_start(&start()).unwrap();
        assert_eq!(decode_start(&message), Ok(start()));
    }

    #[test]
    fn a_start_of_another_version_is_refused_by_number() {
        let mut message = encode_start(&start()).unwrap();
        message[MAGIC.len()] = 9;
        assert_eq!(
            decode_start(&message),
            Err(ProtocolError::Version { theirs: 9 })
        );
    }

    #[test]
    fn every_truncation_of_a_start_is_refused() {
        let message = encode_start(&start()).unwrap();
        for length in 0..message.len() {
            assert!(decode_start(&message[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn requests_about_disks_and_their_answers_survive_the_way() {
        for command in [
            Command::GrowDisk {
                disk: 1,
                bytes: u64::MAX,
            },
            Command::RefreshDisk { disk: 300 },
        ] {
            let request = Request { number: 7, command };
            let message = encode(&request).unwrap();
            assert_eq!(decode(&message), Ok(request));
        }
        for result in [
            Ok(1 << 40),
            Err(DiskRefusal::Absent { disks: 2 }),
            Err(DiskRefusal::ReadOnly),
            Err(DiskRefusal::Smaller { present: 512 }),
            Err(DiskRefusal::NotSectors),
            Err(DiskRefusal::BlockDevice),
            Err(DiskRefusal::Host("no space".to_owned())),
        ] {
            let event = Event::DiskSize { number: 7, result };
            let message = encode(&event).unwrap();
            assert_eq!(decode(&message), Ok(event));
        }
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let mut message = encode(&Event::Running).unwrap();
        message.push(0);
        assert_eq!(decode::<Event>(&message), Err(ProtocolError::Malformed));
    }

    #[test]
    fn a_message_beyond_the_limit_is_not_encoded() {
        let event = Event::Warning("x".repeat(MAX_MESSAGE_BYTES));
        assert!(matches!(encode(&event), Err(ProtocolError::TooLong(_))));
    }

    /// Inputs for the fuzzer to start from.
    const SEEDS: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../fuzz/seeds/control_protocol/"
    );

    #[test]
    fn fuzz_seeds_are_of_this_version() {
        let seed = |name: &str| std::fs::read(format!("{SEEDS}{name}")).unwrap();
        decode_start(&seed("start")).unwrap();
        decode::<Request>(&seed("request-to-grow-a-disk")).unwrap();
        decode::<Event>(&seed("event-disk-size")).unwrap();
        assert_eq!(
            decode_start(&seed("start-of-another-version")),
            Err(ProtocolError::Version { theirs: 1 })
        );
    }

    #[test]
    fn fuzz_seeds_are_answered_without_a_panic() {
        let mut count = 0;
        for entry in std::fs::read_dir(SEEDS).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let _ = decode_start(&bytes);
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Event>(&bytes);
            count += 1;
        }
        assert!(count >= 4, "{count} seeds");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode_start(&bytes);
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Event>(&bytes);
            let mut start = MAGIC.to_vec();
            start.extend(VERSION.to_le_bytes());
            start.extend(bytes);
            let _ = decode_start(&start);
        }
    }
}
