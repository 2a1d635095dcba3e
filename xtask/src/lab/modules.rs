//! Which kernel modules the lab loads, and in which order.
//!
//! The modules come unpacked from a package, so nobody has run `depmod` on them. Each module names what it needs in its
//! `.modinfo` section, as a NUL-terminated `depends=a,b,c`; that is all there is to read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Finds modules by name in a tree such as `/lib/modules/VERSION`.
pub(crate) struct ModuleTree {
    root: PathBuf,
    paths: BTreeMap<String, PathBuf>,
    /// Those that this kernel has without loading them.
    built_in: BTreeSet<String>,
}

pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

impl ModuleTree {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let mut paths = BTreeMap::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            let entries = fs::read_dir(&directory)
                .with_context(|| format!("cannot list {}", directory.display()))?;
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    directories.push(entry.path());
                } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                    paths.insert(name, entry.path());
                }
            }
        }
        // Not every package has the list; then what is built in had better not be asked for.
        let list = fs::read_to_string(root.join("modules.builtin")).unwrap_or_default();
        let built_in = list
            .lines()
            .filter_map(|path| module_name(path.rsplit('/').next()?))
            .collect();
        Ok(Self {
            root: root.to_owned(),
            paths,
            built_in,
        })
    }

    /// The named modules and all that they need, each after what it needs.
    pub(crate) fn in_load_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(&canonical(name), &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<Module>,
    ) -> Result<()> {
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.paths.get(name).with_context(|| {
            format!(
                "there is no kernel module {name} in {}",
                self.root.display()
            )
        })?;
        let content = read(path)?;
        for needed in dependencies(&content) {
            self.visit(&needed, seen, ordered)?;
        }
        ordered.push(Module {
            name: name.to_owned(),
            content,
        });
        Ok(())
    }
}

/// The name of the module in this file, if it is one.
fn module_name(file: &str) -> Option<String> {
    let (name, packing) = file.split_once(".ko")?;
    matches!(packing, "" | ".xz" | ".zst" | ".gz").then(|| canonical(name))
}

/// A module's content, unpacked: only some kernels do that themselves.
fn read(path: &Path) -> Result<Vec<u8>> {
    let unpacker = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(unpacker)
        .args(["--decompress", "--stdout", "--"])
        .arg(path)
        .output()
        .with_context(|| {
            format!(
                "cannot run {unpacker}, with which {} is packed",
                path.display()
            )
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cannot unpack {}: {}", path.display(), said.trim());
    }
    Ok(output.stdout)
}

/// A module's file may spell `-` where the kernel says `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let list = module[start + KEY.len()..]
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &str)]) -> (tempfile::TempDir, ModuleTree) {
        let directory = tempfile::tempdir().unwrap();
        for (name, depends) in modules {
            let content = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(directory.path().join(format!("{name}.ko")), content).unwrap();
        }
        let tree = ModuleTree::open(directory.path()).unwrap();
        (directory, tree)
    }

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let (_directory, tree) = tree(&[
            ("kvm-amd", "kvm,ccp"),
            ("kvm", "irqbypass"),
            ("irqbypass", ""),
            ("ccp", "irqbypass"),
        ]);

        let order = tree.in_load_order(&["kvm_amd", "kvm"]).unwrap();

        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["irqbypass", "kvm", "ccp", "kvm_amd"]);
    }

    #[test]
    fn packed_module_is_unpacked_and_built_in_ones_are_left_out() {
        let (directory, _) = tree(&[("tun", "virtio,ipv6")]);
        let packed = Command::new("gzip")
            .arg(directory.path().join("tun.ko"))
            .status()
            .unwrap();
        assert!(packed.success());
        let built_in = "kernel/drivers/virtio/virtio.ko\nkernel/net/ipv6/ipv6.ko\n";
        fs::write(directory.path().join("modules.builtin"), built_in).unwrap();

        let order = ModuleTree::open(directory.path())
            .unwrap()
            .in_load_order(&["tun"])
            .unwrap();

        assert_eq!(order.len(), 1);
        assert!(order[0].content.starts_with(b"\x7fELF"));
    }

    #[test]
    fn module_that_is_missing_is_named() {
        let (_directory, tree) = tree(&[("a", "b")]);

        let error = tree.in_load_order(&["a"]).err().unwrap();

        assert!(error.to_string().contains("no kernel module b"));
    }
}
