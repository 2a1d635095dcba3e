//! Whether this program may use the framework.

use std::ffi::c_void;
use std::ptr;

use capsa_apple_plan::{EngineFailure, FailureKind};
use objc2::rc::Retained;
use objc2::runtime::NSObject;
use objc2_foundation::{NSNumber, NSString};

const ENTITLEMENT: &str = "com.apple.security.virtualization";

#[link(name = "Security", kind = "framework")]
unsafe extern "C" {
    /// `SecTask.h`. Both return an object that the caller owns, or null.
    fn SecTaskCreateFromSelf(allocator: *const c_void) -> *mut NSObject;
    fn SecTaskCopyValueForEntitlement(
        task: *const NSObject,
        entitlement: *const NSString,
        error: *mut *mut c_void,
    ) -> *mut NSObject;
}

/// Fails with the way to sign, unless the program has the entitlement.
pub(super) fn check() -> Result<(), EngineFailure> {
    if is_granted() {
        return Ok(());
    }
    let program = std::env::current_exe();
    let program = program.map_or_else(|_| "PROGRAM".to_owned(), |path| path.display().to_string());
    Err(EngineFailure::new(
        FailureKind::Unavailable,
        format!("this program is not signed with the entitlement {ENTITLEMENT}"),
        format!(
            "sign it: codesign --force --sign - --entitlements \
             crates/apple/virtualization.entitlements {program} (cargo run and cargo test do it by \
             themselves), or use the macos-subprocess backend with a signed capsa-vzd"
        ),
    ))
}

fn is_granted() -> bool {
    let name = NSString::from_str(ENTITLEMENT);
    // SAFETY: the default allocator; the result is owned by the caller.
    let task = unsafe { Retained::from_raw(SecTaskCreateFromSelf(ptr::null())) };
    let Some(task) = task else { return false };
    // SAFETY: the task and the name live through the call, NSString is CFString, and the error is
    // not wanted. The result is owned by the caller.
    let value = unsafe {
        Retained::from_raw(SecTaskCopyValueForEntitlement(
            &*task,
            &*name,
            ptr::null_mut(),
        ))
    };
    let Some(value) = value else { return false };
    // CFBoolean is an NSNumber.
    value
        .downcast::<NSNumber>()
        .is_ok_and(|value| value.boolValue())
}
