//! What is built for macOS.

/// The features that a Mac has. They are checked with the whole workspace: what runs on Linux only
/// is an empty crate there.
pub(crate) const FEATURES: &str =
    "capsa/vfkit,capsa/macos-native,capsa/macos-subprocess,capsa/test-utils";
