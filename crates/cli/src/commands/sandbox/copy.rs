//! `capsa cp`: files and trees into a sandbox and out of it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use capsa::{ExtractOptions, FileKind, Files, Sandbox, SandboxError};
use clap::Args;

use crate::exit_status::ExitStatus;
use crate::failure::Failure;

#[derive(Args)]
pub(crate) struct CopyArguments {
    /// What is copied: a path of this machine, or NAME:PATH of a sandbox
    from: OsString,
    /// Where it goes: the other kind of the two
    to: OsString,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    There { name: String, path: PathBuf },
}

/// A path with a colon in it is this machine's where a slash comes before the colon.
fn place(text: &OsString) -> Place {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':');
    let (name, path) = match colon.map(|at| bytes.split_at(at)) {
        Some((name, path)) if !name.is_empty() && !name.contains(&b'/') => (name, path),
        _ => return Place::Here(text.into()),
    };
    match std::str::from_utf8(name) {
        Ok(name) => Place::There {
            name: name.to_owned(),
            path: OsString::from_vec(path.get(1..).unwrap_or_default().to_vec()).into(),
        },
        Err(_) => Place::Here(text.into()),
    }
}

pub(crate) async fn run(arguments: CopyArguments) -> Result<ExitStatus, Failure> {
    match (place(&arguments.from), place(&arguments.to)) {
        (Place::Here(from), Place::There { name, path }) => {
            let files = Sandbox::attach(&name).await?.files();
            let to = into_directory(is_directory(&files, &path).await?, &path, &from);
            files
                .copy_in(from, to, ExtractOptions::default())
                .await
                .map_err(SandboxError::from)?;
        }
        (Place::There { name, path }, Place::Here(to)) => {
            let files = Sandbox::attach(&name).await?.files();
            let to = into_directory(to.is_dir(), &to, &path);
            files
                .copy_out(path, to, ExtractOptions::default())
                .await
                .map_err(SandboxError::from)?;
        }
        _ => {
            return Err(capsa::Error::invalid_setting(
                "cp",
                arguments.to.display(),
                "exactly one of the two places is a sandbox's",
                "write `capsa cp PATH NAME:PATH` or `capsa cp NAME:PATH PATH`",
            )
            .into());
        }
    }
    Ok(ExitStatus::Success)
}

/// As `cp` does: into a directory that is there, under the same name.
fn into_directory(is_directory: bool, to: &Path, from: &Path) -> PathBuf {
    match from.file_name() {
        Some(name) if is_directory => to.join(name),
        _ => to.to_owned(),
    }
}

async fn is_directory(files: &Files, path: &Path) -> Result<bool, Failure> {
    match files.metadata(path).await {
        Ok(metadata) => Ok(metadata.kind == FileKind::Directory),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(SandboxError::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_sandboxes_are_told_from_paths() {
        let there = |name: &str, path: &str| Place::There {
            name: name.into(),
            path: path.into(),
        };
        for (text, expected) in [
            ("box:/etc", there("box", "/etc")),
            ("box:", there("box", "")),
            ("./a:b", Place::Here("./a:b".into())),
            ("/a:b", Place::Here("/a:b".into())),
            (":a", Place::Here(":a".into())),
            ("file", Place::Here("file".into())),
        ] {
            assert_eq!(place(&text.into()), expected, "{text}");
        }
    }

    #[test]
    fn copy_into_a_directory_keeps_the_name() {
        let (to, from) = (Path::new("/tmp"), Path::new("a/b"));
        assert_eq!(into_directory(true, to, from), Path::new("/tmp/b"));
        assert_eq!(into_directory(false, to, from), Path::new("/tmp"));
    }
}
