//! Making the configuration, and checking that it is the one that was asked for.

use std::collections::HashMap;
use std::fs;

use super::make::Make;
use super::recipe::Recipe;
use super::{BuildError, Progress};

/// `make tinyconfig`, the fragments on top, `make olddefconfig`, and the check.
pub(super) fn configure(
    make: &Make<'_>,
    recipe: &Recipe,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), BuildError> {
    progress(Progress::Step("configuring"));
    make.run(&["tinyconfig"], progress)?;
    let mut paths = Vec::new();
    for (name, text) in recipe.fragments {
        let path = make.out.join(name);
        fs::write(&path, text).map_err(BuildError::io("writing", &path))?;
        paths.push(path);
    }
    make.merge_fragments(&paths, progress)?;
    make.run(&["olddefconfig"], progress)?;
    let path = make.out.join(".config");
    let config = fs::read_to_string(&path).map_err(BuildError::io("reading", &path))?;
    let dropped: Vec<String> = dropped(recipe.fragments.map(|(_, text)| text), &config);
    if dropped.is_empty() {
        Ok(())
    } else {
        Err(BuildError::Dropped(dropped))
    }
}

/// What the fragments ask for and the configuration has not; of an option in several fragments the
/// last one counts.
fn dropped<'a>(fragments: impl IntoIterator<Item = &'a str>, config: &str) -> Vec<String> {
    let set: HashMap<&str, &str> = config.lines().filter_map(option).collect();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (name, value) in fragments
        .into_iter()
        .flat_map(str::lines)
        .filter_map(option)
    {
        wanted.retain(|(known, _)| *known != name);
        wanted.push((name, value));
    }
    wanted
        .into_iter()
        .filter_map(|(name, value)| {
            // An option that is not mentioned at all is off.
            let is = set.get(name).copied().unwrap_or("n");
            (is != value).then(|| format!("{name} is {is}, not {value}"))
        })
        .collect()
}

/// Name and value of the option that a line sets; `# CONFIG_X is not set` is how `n` is written.
pub(super) fn option(line: &str) -> Option<(&str, &str)> {
    if let Some(off) = line.strip_prefix("# ") {
        let name = off.strip_suffix(" is not set")?;
        return name.starts_with("CONFIG_").then_some((name, "n"));
    }
    line.split_once('=')
        .filter(|(name, _)| name.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;
    use crate::build::recipe::fragments;

    #[test]
    fn options_that_did_not_survive_are_listed() {
        let fragment = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=64\n# words\nCONFIG_D=y\n";
        let config = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=8\n";

        assert_eq!(
            dropped([fragment], config),
            [
                "CONFIG_B is y, not n",
                "CONFIG_C is 8, not 64",
                "CONFIG_D is n, not y"
            ]
        );
    }

    #[test]
    fn options_that_survived_are_not_listed() {
        let fragment = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=n\n";

        assert_eq!(
            dropped([fragment], "CONFIG_A=y\n# CONFIG_C is not set\n"),
            [""; 0]
        );
    }

    #[test]
    fn later_fragment_wins() {
        assert_eq!(
            dropped(["CONFIG_A=y\n", "# CONFIG_A is not set\n"], ""),
            [""; 0]
        );
    }

    #[test]
    fn every_line_of_our_fragments_is_an_option_or_a_comment() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for (name, text) in fragments(arch) {
                for line in text.lines() {
                    assert!(
                        line.is_empty() || line.starts_with('#') || option(line).is_some(),
                        "{name}: {line}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_option_stands_twice_in_a_fragment() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for (name, text) in fragments(arch) {
                let mut seen = std::collections::HashSet::new();
                for (option, _) in text.lines().filter_map(option) {
                    assert!(seen.insert(option), "{name}: {option}");
                }
            }
        }
    }
}
