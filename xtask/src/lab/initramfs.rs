//! The lab's first file system: this very program as `/init`, the libraries it needs, and kernel modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::modules::Module;

/// Where the modules lie, numbered in the order to load them.
pub(super) const MODULES: &str = "/modules";
/// Where the host's root file system gets mounted at first.
pub(super) const HOST: &str = "/host";

/// Where programs built for this architecture look for their loader.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

pub(super) fn build(modules: &[Module]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory(Path::new("/dev"))?;
    archive.character_device(Path::new("/dev/console"), 5, 1)?;
    archive.directory(Path::new(HOST))?;
    let program = fs::read("/proc/self/exe").context("cannot read this program's own file")?;
    archive.file(Path::new("/init"), what_gets_mapped(&program))?;
    for library in own_libraries()? {
        let content =
            fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
        archive.file(&library, &content)?;
    }
    if let Ok(loader) = fs::canonicalize(LOADER)
        && loader != Path::new(LOADER)
    {
        archive.symlink(Path::new(LOADER), &loader)?;
    }
    for (number, module) in modules.iter().enumerate() {
        archive.file(
            &Path::new(MODULES).join(format!("{number:03}-{}", module.name)),
            &module.content,
        )?;
    }
    archive.finish()
}

/// The part of a program's file that running it needs: debug information lies behind that, and is most of the file.
fn what_gets_mapped(program: &[u8]) -> &[u8] {
    mapped_length(program)
        .and_then(|length| program.get(..length))
        .unwrap_or(program)
}

/// The end of the last segment, from the program headers of a 64-bit little-endian ELF file (System V gABI, chapter 5).
fn mapped_length(program: &[u8]) -> Option<usize> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = program.get(at..at.checked_add(size)?)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).ok()
    };
    if program.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry_size, entries) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut end = table.checked_add(entry_size.checked_mul(entries)?)?;
    for entry in 0..entries {
        let header = table + entry * entry_size;
        end = end.max(number(header + 8, 8)?.checked_add(number(header + 32, 8)?)?);
    }
    Some(end)
}

/// The shared libraries that this process has mapped, its loader among them.
fn own_libraries() -> Result<BTreeSet<PathBuf>> {
    let maps = fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
    Ok(mapped_libraries(&maps).map(PathBuf::from).collect())
}

fn mapped_libraries(maps: &str) -> impl Iterator<Item = &str> {
    maps.lines()
        .filter(|line| {
            line.split_ascii_whitespace()
                .nth(1)
                .is_some_and(|permissions| permissions.contains('x'))
        })
        .filter_map(|line| line.find('/').map(|start| &line[start..]))
        .filter(|path| path.contains(".so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_cut_behind_its_last_segment() {
        let program = fs::read("/proc/self/exe").unwrap();
        let mut longer = program.clone();
        longer.extend([0; 1000]);

        let cut = what_gets_mapped(&longer);

        assert!(!cut.is_empty());
        assert_eq!(cut, what_gets_mapped(&program));
        assert_eq!(cut, &program[..cut.len()]);
    }

    #[test]
    fn file_that_is_no_program_is_left_whole() {
        assert_eq!(what_gets_mapped(b"#!/bin/sh"), b"#!/bin/sh");
    }

    #[test]
    fn libraries_are_the_executable_mappings_of_shared_objects() {
        let maps = "\
7f00-7f01 r-xp 00000000 fe:00 1 /usr/lib/x86_64-linux-gnu/libc.so.6
7f01-7f02 r--p 00001000 fe:00 1 /usr/lib/locale/C.utf8/LC_CTYPE
5500-5501 r-xp 00000000 fe:00 2 /work/target/debug/xtask
7ffd-7ffe r-xp 00000000 00:00 0 [vdso]
";

        let libraries: Vec<_> = mapped_libraries(maps).collect();

        assert_eq!(libraries, ["/usr/lib/x86_64-linux-gnu/libc.so.6"]);
    }
}
