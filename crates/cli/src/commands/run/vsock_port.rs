//! `--vsock-port`.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::str::FromStr;

use capsa::{Error, VmHandle, VsockForward, VsockSpec};

/// `PORT:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VsockPortArgument {
    pub(crate) port: u32,
    path: PathBuf,
}

impl FromStr for VsockPortArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(port, path)| {
            let plain = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|_| plain)?;
            (!path.is_empty()).then(|| (port, PathBuf::from(path)))
        });
        let (port, path) = parts.ok_or(
            "write PORT:PATH, a port of the guest's from 0 to 4294967294 and the Unix socket that a \
             program of this machine listens on",
        )?;
        VsockSpec::check_port(port).map_err(|error| error.to_string())?;
        Ok(Self { port, path })
    }
}

/// Finds before anything starts what would fail after it.
///
/// # Errors
/// [`Error::InvalidSetting`] for a port that is there twice, and a path that is no socket.
pub(crate) fn check(ports: &[VsockPortArgument]) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for VsockPortArgument { port, path } in ports {
        let wrong = |reason: &str, fix: &str| {
            let value = format!("{port}:{}", path.display());
            Err(Error::invalid_setting("--vsock-port", value, reason, fix))
        };
        if !seen.insert(port) {
            return wrong("the port is there twice", "give each port once");
        }
        let reason = match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_socket() => continue,
            Ok(_) => "it is not a socket".to_owned(),
            Err(error) => error.to_string(),
        };
        return wrong(&reason, "start the program that listens on it first");
    }
    Ok(())
}

/// Hands the guest's connections on for as long as what this gives is kept.
pub(crate) async fn open(
    vm: &VmHandle,
    ports: &[VsockPortArgument],
) -> Result<Vec<VsockForward>, Error> {
    let mut forwards = Vec::new();
    for VsockPortArgument { port, path } in ports {
        let listener = vm.vsock_listen(*port).await?;
        forwards.push(listener.hand_to_unix_socket(path).await?);
    }
    Ok(forwards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_parse_with_paths_that_may_have_colons() {
        for (text, port, path) in [
            ("5000:/run/x", 5000, "/run/x"),
            ("0:a", 0, "a"),
            ("4294967294:./a:b", u32::MAX - 1, "./a:b"),
        ] {
            let expected = VsockPortArgument {
                port,
                path: path.into(),
            };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn ports_that_are_none_or_reserved_are_refused() {
        for text in [
            "",
            ":",
            "5000",
            "5000:",
            ":/x",
            "x:/x",
            "-1:/x",
            "+1:/x",
            "/x:5000",
            "52100:/x",
            "52199:/x",
            "4294967295:/x",
            "4294967296:/x",
        ] {
            assert!(text.parse::<VsockPortArgument>().is_err(), "{text}");
        }
    }
}
