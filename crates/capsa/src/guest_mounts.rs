//! Telling the default initramfs where to mount shares, by kernel parameters:
//! `capsa.mount=TAG:PATH` or `capsa.mount=TAG:PATH:ro`, with everything but plain characters in both
//! written as `%` and two hexadecimal digits.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use capsa_core::{ShareAccess, ShareSpec};

/// A parameter for each of `shares`, in their order.
pub(crate) fn parameters(shares: &[ShareSpec]) -> impl Iterator<Item = String> {
    shares.iter().enumerate().map(|(index, share)| {
        let mut parameter = "capsa.mount=".to_owned();
        escape(share.tag_at(index).as_bytes(), &mut parameter);
        parameter.push(':');
        escape(share.guest_path.as_os_str().as_bytes(), &mut parameter);
        if share.access == ShareAccess::ReadOnly {
            parameter.push_str(":ro");
        }
        parameter
    })
}

fn escape(bytes: &[u8], into: &mut String) {
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                into.push(char::from(byte));
            }
            // Writing to a string cannot fail.
            _ => drop(write!(into, "%{byte:02x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_told_by_tag_path_and_access() {
        let mut work = ShareSpec::new("/host", "/my work:100%");
        work.access = ShareAccess::ReadWrite;
        let shares = [ShareSpec::new("/etc", "/mnt"), work];

        let parameters: Vec<_> = parameters(&shares).collect();

        assert_eq!(
            parameters,
            [
                "capsa.mount=share0:/mnt:ro",
                "capsa.mount=share1:/my%20work%3a100%25"
            ]
        );
    }
}
