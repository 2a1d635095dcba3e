//! Compares the methods in `unsafe impl SomeProtocol for Class { #[unsafe(method(selector))] … }`
//! with the protocol as the objc2 crates bind it: same selector, same argument types. rustc does not
//! notice a misspelt optional method; the framework would never call it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde_json::Value;

use super::sdk::{block_body, rust_files};
use super::toolchain::output;

/// The folder whose `define_class!` blocks are looked at.
const SOURCES: &str = "crates/apple";

type Methods = HashMap<String, Vec<String>>;

/// Looks at every class of ours; fails when one method is not its protocol's.
pub(super) fn check(workspace: &Path) -> Result<()> {
    let parser = Parser::new()?;
    let mut protocols: HashMap<String, Methods> = HashMap::new();
    for folder in binding_sources(workspace)? {
        for file in rust_files(&folder)? {
            parser.read_protocols(&fs::read_to_string(&file)?, &mut protocols);
        }
    }
    let mut passed = 0;
    let mut failures = Vec::new();
    for file in rust_files(&workspace.join(SOURCES))? {
        let text = fs::read_to_string(&file)?;
        for outcome in parser.compare(&text, &protocols) {
            match outcome {
                Ok(()) => passed += 1,
                Err(failure) => failures.push(format!("{}: {failure}", file.display())),
            }
        }
    }
    for failure in &failures {
        println!("{failure}");
    }
    println!(
        "darwin: selectors: {passed} passed, {} failed",
        failures.len()
    );
    if !failures.is_empty() {
        bail!("a method is not its protocol's: the framework would never call it");
    }
    if passed == 0 {
        bail!("no define_class! method was found under {SOURCES}: the pattern fits no more");
    }
    Ok(())
}

fn binding_sources(workspace: &Path) -> Result<Vec<PathBuf>> {
    let metadata = output(
        Command::new("cargo")
            .current_dir(workspace)
            .args(["metadata", "--format-version=1"]),
    )?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata's output")?;
    Ok(metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|package| {
            package["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("objc2-"))
        })
        .filter_map(|package| package["manifest_path"].as_str())
        .map(|manifest| Path::new(manifest).with_file_name("src"))
        .collect())
}

struct Parser {
    protocol: Regex,
    implementation: Regex,
    method: Regex,
    comment: Regex,
}

impl Parser {
    fn new() -> Result<Self> {
        Ok(Self {
            protocol: Regex::new(r"pub unsafe trait (\w+)[^{]*\{")?,
            implementation: Regex::new(r"unsafe impl (\w+) for (\w+)\s*\{")?,
            method: Regex::new(
                r"(?s)#\[unsafe\(method\(([^)]*)\)\)\](?:\s*#\[[^\]]*\])*\s*(?:pub\s+)?(?:unsafe\s+)?fn\s+\w+\s*\(([^)]*)\)",
            )?,
            comment: Regex::new(r"//[^\n]*")?,
        })
    }

    fn read_protocols(&self, text: &str, protocols: &mut HashMap<String, Methods>) {
        for found in self.protocol.captures_iter(text) {
            let end = found.get(0).map_or(0, |whole| whole.end());
            let methods = self.methods(block_body(&text[end..]));
            protocols.insert(found[1].to_owned(), methods.into_iter().collect());
        }
    }

    fn compare(&self, text: &str, protocols: &HashMap<String, Methods>) -> Vec<Result<(), String>> {
        let text = self.comment.replace_all(text, "");
        let mut outcomes = Vec::new();
        for found in self.implementation.captures_iter(&text) {
            let (protocol, class) = (&found[1], &found[2]);
            let end = found.get(0).map_or(0, |whole| whole.end());
            for (selector, types) in self.methods(block_body(&text[end..])) {
                let wanted = protocols
                    .get(protocol)
                    .and_then(|methods| methods.get(&selector));
                outcomes.push(match wanted {
                    None => Err(format!("{class}: {selector} is not in {protocol}")),
                    Some(wanted) if *wanted != types => {
                        Err(format!("{class}: {selector}: {types:?} is not {wanted:?}"))
                    }
                    Some(_) => Ok(()),
                });
            }
        }
        outcomes
    }

    /// Selectors with the types of their arguments, receiver left out, white space removed.
    fn methods(&self, text: &str) -> Vec<(String, Vec<String>)> {
        self.method
            .captures_iter(text)
            .map(|found| {
                let types = found[2]
                    .split(',')
                    .filter_map(|argument| argument.split_once(':'))
                    .map(|(_, kind)| kind.split_whitespace().collect())
                    .collect();
                (found[1].to_owned(), types)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOCOL: &str = r#"
        pub unsafe trait Delegate: NSObjectProtocol {
            #[optional]
            #[unsafe(method(guestDidStop:))]
            #[unsafe(method_family = none)]
            unsafe fn guestDidStop(&self, machine: &Machine);
        }
    "#;

    fn outcomes(method: &str) -> Vec<Result<(), String>> {
        let parser = Parser::new().unwrap();
        let mut protocols = HashMap::new();
        parser.read_protocols(PROTOCOL, &mut protocols);
        let text = format!("unsafe impl Delegate for Ours {{ {method} }}");
        parser.compare(&text, &protocols)
    }

    #[test]
    fn method_of_the_protocol_passes() {
        let found = outcomes("#[unsafe(method(guestDidStop:))] fn x(&self, m: &Machine) {}");
        assert_eq!(found, [Ok(())]);
    }

    #[test]
    fn misspelt_selector_is_reported() {
        let found = outcomes("#[unsafe(method(guestDidStopp:))] fn x(&self, m: &Machine) {}");
        assert_eq!(
            found,
            [Err("Ours: guestDidStopp: is not in Delegate".to_owned())]
        );
    }

    #[test]
    fn other_argument_type_is_reported() {
        let found = outcomes("#[unsafe(method(guestDidStop:))] fn x(&self, m: &Device) {}");
        assert!(found[0].is_err(), "{found:?}");
    }
}
