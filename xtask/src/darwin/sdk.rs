//! A stub of Apple's SDK for the linker: text files (`.tbd`) that list which library has which
//! symbol. libSystem's comes from PyPI's `ziglang`; the frameworks' are made from the crates that
//! bind them (`#[link(name = "X", kind = "framework")]` and their `extern "C"` items), so a symbol
//! that no binding names still fails to link.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use regex::Regex;
use serde_json::Value;

use super::toolchain::{Toolchain, output};

/// rust-lld of LLVM 22 reads this version's file; it cannot read that of 0.17.
const ZIGLANG: &str = "ziglang==0.15.2";

/// Writes the stub for `target`; returns its folder, the `SDKROOT`.
pub(super) fn write(toolchain: &Toolchain, workspace: &Path, target: &str) -> Result<PathBuf> {
    let libsystem = libsystem(&toolchain.cache)?;
    let metadata = output(toolchain.cargo(target).current_dir(workspace).args([
        "metadata",
        "--format-version=1",
        "--filter-platform",
        target,
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata's output")?;

    let patterns = Patterns::new()?;
    let mut frameworks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut objc = BTreeSet::from(
        [
            "_objc_empty_cache",
            "__objc_personality_v0",
            "OBJC_EHTYPE_id",
        ]
        .map(str::to_owned),
    );
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let Some(manifest) = package["manifest_path"].as_str() else {
            continue;
        };
        let sources = Path::new(manifest).with_file_name("src");
        let mut text = String::new();
        for file in rust_files(&sources)? {
            text.push_str(&String::from_utf8_lossy(&fs::read(&file)?));
            text.push('\n');
        }
        if package["name"] == "objc2" {
            objc.extend(patterns.captures(&patterns.objc, &text));
        }
        for framework in patterns.captures(&patterns.framework, &text) {
            let symbols = frameworks.entry(framework).or_default();
            symbols.extend(patterns.extern_symbols(&text));
        }
    }

    let sdk = toolchain.cache.join(format!("sdk-{target}"));
    if sdk.exists() {
        fs::remove_dir_all(&sdk)?;
    }
    let lib = sdk.join("usr/lib");
    fs::create_dir_all(&lib)?;
    for name in ["libSystem", "libc", "libm", "libpthread", "libdl"] {
        fs::copy(&libsystem, lib.join(format!("{name}.tbd")))?;
    }
    write_stub(&lib.join("libobjc.tbd"), "/usr/lib/libobjc.A.dylib", &objc)?;
    let iconv = BTreeSet::from(["iconv", "iconv_open", "iconv_close"].map(str::to_owned));
    write_stub(
        &lib.join("libiconv.tbd"),
        "/usr/lib/libiconv.2.dylib",
        &iconv,
    )?;
    for (name, symbols) in &frameworks {
        let version = match name.as_str() {
            "Foundation" | "AppKit" => "C",
            _ => "A",
        };
        let folder = sdk.join(format!("System/Library/Frameworks/{name}.framework"));
        fs::create_dir_all(&folder)?;
        let install =
            format!("/System/Library/Frameworks/{name}.framework/Versions/{version}/{name}");
        write_stub(&folder.join(format!("{name}.tbd")), &install, symbols)?;
    }
    Ok(sdk)
}

/// libSystem's stub, fetched once.
fn libsystem(cache: &Path) -> Result<PathBuf> {
    let path = cache.join("libSystem.tbd");
    if path.is_file() {
        return Ok(path);
    }
    println!("darwin: fetching libSystem's stub from PyPI's {ZIGLANG} (94 MB, once)");
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    output(
        Command::new("python3")
            .args(["-m", "pip", "download", "-q", "--no-deps", "-d"])
            .arg(work.path())
            .arg(ZIGLANG),
    )
    .context("pip is needed: apt-get install python3-pip")?;
    let wheel = fs::read_dir(work.path())?
        .next()
        .context("pip downloaded nothing")??
        .path();
    output(
        Command::new("python3")
            .args([
                "-c",
                "import sys, zipfile\n\
                 data = zipfile.ZipFile(sys.argv[1]).read('ziglang/lib/libc/darwin/libSystem.tbd')\n\
                 open(sys.argv[2], 'wb').write(data)",
            ])
            .arg(&wheel)
            .arg(cache.join("libSystem.partial")),
    )?;
    fs::rename(cache.join("libSystem.partial"), &path)?;
    Ok(path)
}

fn write_stub(path: &Path, install_name: &str, symbols: &BTreeSet<String>) -> Result<()> {
    let targets = "[ x86_64-macos, arm64-macos, arm64e-macos ]";
    let symbols: Vec<String> = symbols.iter().map(|name| format!("'_{name}'")).collect();
    let text = format!(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: {targets}\ninstall-name: '{install_name}'\n\
         exports:\n  - targets: {targets}\n    symbols: [ {} ]\n...\n",
        symbols.join(", ")
    );
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

pub(super) fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

struct Patterns {
    framework: Regex,
    objc: Regex,
    block: Regex,
    item: Regex,
    link_name: Regex,
}

impl Patterns {
    fn new() -> Result<Self> {
        Ok(Self {
            framework: Regex::new(r#"link\(\s*name\s*=\s*"([^"]+)",\s*kind\s*=\s*"framework""#)?,
            objc: Regex::new(
                r"\bfn\s+((?:objc|class|method|object|sel|protocol|property|ivar|imp)_\w+)",
            )?,
            block: Regex::new(r#"extern\s+"C(?:-unwind)?"\s*\{"#)?,
            item: Regex::new(
                r"(?m)^\s*(?:pub(?:\([^)]*\))?\s+)?(?:unsafe\s+)?(?:safe\s+)?(?:fn|static(?:\s+mut)?)\s+([A-Za-z_][A-Za-z0-9_]*)",
            )?,
            link_name: Regex::new(r#"link_name\s*=\s*"\\?x?0?1?_?([^"]+)""#)?,
        })
    }

    fn captures(&self, pattern: &Regex, text: &str) -> BTreeSet<String> {
        pattern
            .captures_iter(text)
            .map(|found| found[1].to_owned())
            .collect()
    }

    fn extern_symbols(&self, text: &str) -> BTreeSet<String> {
        let mut symbols = BTreeSet::new();
        for start in self.block.find_iter(text) {
            let body = block_body(&text[start.end()..]);
            symbols.extend(self.captures(&self.item, body));
            symbols.extend(self.captures(&self.link_name, body));
        }
        symbols
    }
}

/// The text up to the brace that closes a block whose opening brace stands just before `text`.
pub(super) fn block_body(text: &str) -> &str {
    let mut depth = 1_usize;
    for (position, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..position];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_of_an_extern_block_are_found_and_others_are_not() {
        let text = r#"
            fn outside() {}
            #[link(name = "Virtualization", kind = "framework")]
            unsafe extern "C" {
                pub fn inside(a: u8);
                pub static VZErrorDomain: &'static str;
                #[link_name = "\x01_renamed"]
                fn other();
            }
            fn after() {}
        "#;

        let patterns = Patterns::new().unwrap();

        assert_eq!(
            patterns.extern_symbols(text),
            BTreeSet::from(["VZErrorDomain", "inside", "other", "renamed"].map(str::to_owned))
        );
        assert!(
            patterns
                .captures(&patterns.framework, text)
                .contains("Virtualization")
        );
    }

    #[test]
    fn an_unclosed_block_ends_with_the_text() {
        assert_eq!(block_body(" a { b } c"), " a { b } c");
        assert_eq!(block_body(" a { b } c } d"), " a { b } c ");
    }
}
