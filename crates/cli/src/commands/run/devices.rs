//! `--disk` and `--share`.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use capsa::{DiskAccess, DiskSpec, ShareAccess, ShareSpec};

/// `FILE[:rw|:ro|:overlay]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskArgument(pub(crate) DiskSpec);

impl FromStr for DiskArgument {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (path, access) = match text.rsplit_once(':') {
            Some((path, "rw")) => (path, DiskAccess::ReadWrite),
            Some((path, "ro")) => (path, DiskAccess::ReadOnly),
            Some((path, "overlay")) => (path, DiskAccess::Overlay { layer: None }),
            // The colon is part of the name.
            _ => (text, DiskAccess::ReadWrite),
        };
        Ok(Self(DiskSpec {
            access,
            ..DiskSpec::new(path)
        }))
    }
}

/// `HOST:GUEST[:ro|:rw]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShareArgument(pub(crate) ShareSpec);

impl FromStr for ShareArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (paths, access) = match text.rsplit_once(':') {
            Some((paths, "ro")) => (paths, ShareAccess::ReadOnly),
            Some((paths, "rw")) => (paths, ShareAccess::ReadWrite),
            _ => (text, ShareAccess::ReadOnly),
        };
        match paths.rsplit_once(':') {
            Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
                Ok(Self(ShareSpec {
                    access,
                    ..ShareSpec::new(host, PathBuf::from(guest))
                }))
            }
            _ => Err(
                "write HOST:GUEST, HOST:GUEST:ro or HOST:GUEST:rw, with an absolute path in \
                      the guest"
                    .to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_parse_with_and_without_an_access() {
        for (text, path, access) in [
            ("a.img", "a.img", DiskAccess::ReadWrite),
            ("a.img:rw", "a.img", DiskAccess::ReadWrite),
            ("/x:y.img:ro", "/x:y.img", DiskAccess::ReadOnly),
            ("/x:y.img", "/x:y.img", DiskAccess::ReadWrite),
            ("a:overlay", "a", DiskAccess::Overlay { layer: None }),
        ] {
            let DiskArgument(disk) = text.parse().unwrap();
            assert_eq!((disk.path, disk.access), (path.into(), access), "{text}");
        }
    }

    #[test]
    fn shares_parse_read_only_unless_said_otherwise() {
        for (text, host, guest, access) in [
            (".:/mnt", ".", "/mnt", ShareAccess::ReadOnly),
            ("/a:b:/mnt:ro", "/a:b", "/mnt", ShareAccess::ReadOnly),
            ("src:/work:rw", "src", "/work", ShareAccess::ReadWrite),
        ] {
            let ShareArgument(share) = text.parse().unwrap();
            assert_eq!(share.host_path, PathBuf::from(host), "{text}");
            assert_eq!(share.guest_path, PathBuf::from(guest), "{text}");
            assert_eq!(share.access, access, "{text}");
        }
    }

    #[test]
    fn shares_without_an_absolute_guest_path_are_refused() {
        for text in ["", ".", "a:b", ":/mnt", "a:ro", "a::rw"] {
            assert!(text.parse::<ShareArgument>().is_err(), "{text}");
        }
    }
}
