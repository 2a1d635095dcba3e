//! The identifier that makes a machine unique: a saved state is restored only to a machine that has
//! the one of the machine that was saved, so it is kept beside the state.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use capsa_apple_plan::{EngineFailure, FailureKind};
use objc2::AllocAnyThread;
use objc2::rc::Retained;
use objc2_foundation::NSData;
use objc2_virtualization::VZGenericMachineIdentifier;

/// The file of the identifier that belongs to the state in `state`.
fn file_beside(state: &Path) -> PathBuf {
    let mut name = OsString::from(state);
    name.push(".machine");
    name.into()
}

/// The identifier as the bytes that [`write`] keeps.
pub(super) fn bytes(identifier: &VZGenericMachineIdentifier) -> Vec<u8> {
    // SAFETY: a getter.
    unsafe { identifier.dataRepresentation() }.to_vec()
}

pub(super) fn write(state: &Path, bytes: &[u8]) -> Result<(), EngineFailure> {
    let file = file_beside(state);
    fs::write(&file, bytes).map_err(|error| {
        EngineFailure::new(
            FailureKind::Framework,
            format!("cannot write {}: {error}", file.display()),
            "save to a folder that can be written",
        )
    })
}

pub(super) fn read(state: &Path) -> Result<Retained<VZGenericMachineIdentifier>, EngineFailure> {
    let file = file_beside(state);
    let refuse = |reason: String| {
        EngineFailure::new(
            FailureKind::Framework,
            format!("cannot restore without {}: {reason}", file.display()),
            "keep it beside the saved state, from which it cannot be made",
        )
    };
    let bytes = fs::read(&file).map_err(|error| refuse(error.to_string()))?;
    // SAFETY: a new object; the data is copied.
    let identifier = unsafe {
        VZGenericMachineIdentifier::initWithDataRepresentation(
            VZGenericMachineIdentifier::alloc(),
            &NSData::with_bytes(&bytes),
        )
    };
    identifier.ok_or_else(|| refuse("it holds no identifier".to_owned()))
}
